"""
The judge's own log of openings that he was shown, in an append-only file (PROTOCOL.md §2.8, §2.10).

A claimant says himself which sub-keys he opened elsewhere; what he showed to this judge, the judge knows. A sub-key that came under
another nonce before is spent, and earlier looks of the same claimant at the same suspect are charged.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..evidence import Verdict
from ..keys import CommitmentProblem, ProblemKind
from ..publishing.statement import format_date
from ..serialization.schema import Count, Date, Hex32, Slug
from .chain import Chain, Link, append, read_chain


SCHEMA: Literal["hf-watermark/judge-log/v1"] = "hf-watermark/judge-log/v1"
MOST_BYTES, MOST_ENTRIES = 32 * 2**20, 20_000


class Look(Link):
    """
    One opening that was admitted.

    Args:
        precommit, subkey, nonce:
            Whose sub-key, and for which dispute it was opened.
        statement_sha256 (`str`):
            The statement by which it was judged: its model is the reference.
        suspect_sha256 (`str`, *optional*):
            The suspect's contents; nothing where it was not looked at.
        looks (`int`):
            Looks that were charged for this one alone; 0 where the suspect was not looked at.
    """

    date: Date
    precommit: Hex32
    subkey: Annotated[int, Field(ge=0, lt=1024)]
    nonce: Slug
    statement_sha256: Hex32
    suspect_sha256: Hex32 | None
    looks: Count
    verdict: Annotated[Verdict, Field(strict=False)]

    @property
    def asked(self) -> tuple[str, int, str, str, str | None]:
        """Two looks that agree in this are one, taken twice: the same inputs give the same verdict, so nothing is gained by it."""
        return self.precommit, self.subkey, self.nonce, self.statement_sha256, self.suspect_sha256


class Log(Chain):
    """The file."""

    schema_: Annotated[Literal["hf-watermark/judge-log/v1"], Field(alias="schema")]
    entries: Annotated[list[Look], Field(max_length=MOST_ENTRIES)]

    @property
    def links(self) -> list[Look]:
        return self.entries


def read_log(path: str | Path) -> Log:
    """
    The log; an empty one where there is no file yet.

    Raises:
        [`~serialization.InvalidInput`]: when the file is malformed, or an entry was changed, moved or taken out of the middle.
    """
    if not Path(path).exists():
        return Log(schema=SCHEMA, entries=[])  # type: ignore[call-arg]
    return read_chain(Log, path, "judge's log", MOST_BYTES)


@dataclass(frozen=True)
class Ledger:
    """
    What the log says about one claim, and where it is noted.

    Args:
        path (`str` or `Path`, *optional*):
            The judge's log; without one nothing is remembered.
    """

    path: str | Path | None
    precommit: str
    subkey: int
    nonce: str
    statement: str

    @cached_property
    def log(self) -> Log:
        return Log(schema=SCHEMA, entries=[]) if self.path is None else read_log(self.path)  # type: ignore[call-arg]

    @property
    def mine(self) -> list[Look]:
        """What this claimant showed before by the same commitment."""
        return [look for look in self.log.entries if look.precommit == self.precommit]

    def spent(self) -> list[CommitmentProblem]:
        """Why this sub-key proves nothing any more, by the judge's own knowledge."""
        other = sorted({look.nonce for look in self.mine if look.subkey == self.subkey} - {self.nonce})
        if not other:
            return []
        text = f"sub-key {self.subkey} was opened before this judge in another dispute ({other[0]})"
        return [CommitmentProblem(ProblemKind.SPENT, text)]

    def earlier_looks(self, suspect: str) -> int:
        """What earlier looks of this commitment at this suspect were charged; the very same look, taken again, costs nothing."""
        earlier: dict[tuple, int] = {}
        for look in self.mine:
            if look.suspect_sha256 == suspect and look.asked != self._asked(suspect):
                earlier[look.asked] = max(look.looks, earlier.get(look.asked, 0))
        return sum(earlier.values())

    def note(self, suspect: str | None, looks: int, verdict: Verdict) -> None:
        """Appends an entry; what was noted already is not noted again."""
        asked = self._asked(suspect)
        if self.path is None or any(look.asked == asked and look.verdict == verdict for look in self.log.entries):
            return
        entry = {
            "date": format_date(datetime.now(UTC)),
            "precommit": self.precommit,
            "subkey": self.subkey,
            "nonce": self.nonce,
            "statement_sha256": self.statement,
            "suspect_sha256": suspect,
            "looks": looks,
            "verdict": str(verdict),
        }
        append(self.path, self.log, entry)

    def _asked(self, suspect: str | None) -> tuple[str, int, str, str, str | None]:
        return self.precommit, self.subkey, self.nonce, self.statement, suspect
