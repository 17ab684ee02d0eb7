"""What a check of a published model comes to: levels, each passed, failed or open, and dates."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from ..evidence import Evidence
from ..serialization import InvalidInput
from .publication import Publication
from .revocation import Revocation
from .statement import SignedStatement


# Clocks of authorities and of the reader may differ by as much.
CLOCKS = timedelta(minutes=5)
TITLES = {
    "V0": "the statement is signed by its owner and means what it says",
    "V1": "the files are those of the statement",
    "V2": "the key was committed, and the dates are in order",
    "V3": "sub-key 0, opened on purpose, is in the published model",
}


class Outcome(StrEnum):
    """`open` is neither: something that a reader would need is not there, or was not trusted."""

    PASSED = "passed"
    FAILED = "failed"
    OPEN = "open"


@dataclass(frozen=True)
class Level:
    """One line of the report, with what speaks against it or is missing, and what was seen."""

    name: str
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def failed(cls, name: str, error: InvalidInput) -> "Level":
        return cls(name, Outcome.FAILED, (str(error),))

    @classmethod
    def open_if(cls, name: str, missing: Iterable[str], facts: Mapping[str, Any] | None = None) -> "Level":
        """Passed, but for what is missing."""
        missing = tuple(missing)
        return cls(name, Outcome.OPEN if missing else Outcome.PASSED, missing, facts or {})

    def __str__(self) -> str:
        return f"{self.name}: {'; '.join(self.reasons)}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "level": self.name,
            "title": TITLES[self.name],
            "outcome": str(self.outcome),
            "reasons": list(self.reasons),
            "facts": dict(self.facts),
        }


@dataclass(frozen=True)
class Dates:
    """
    What authorities that the reader trusts say about a publication.

    Args:
        precommit, statement (`datetime`, *optional*):
            The latest of the trusted times of each: what counts for the owner.
        first_statement (`datetime`, *optional*):
            The earliest trusted time of the statement: what counts against him.
        authorities (`int`):
            How many independent authorities dated both.
        beacon (`bytes`, *optional*):
            The beacon, when the reader has established it himself; only then is level B enough.
    """

    precommit: datetime | None = None
    statement: datetime | None = None
    first_statement: datetime | None = None
    authorities: int = 0
    beacon: bytes | None = None


@dataclass(frozen=True)
class LevelReport:
    """
    Args:
        evidence ([`Evidence`], *optional*):
            What was read of sub-key 0 in the published model.
        revocations (`tuple[Revocation, ...]`):
            Those of this key that its owner signed. They fail no level: what was signed before stays signed.
    """

    publication: Publication
    levels: tuple[Level, ...]
    dates: Dates = Dates()
    evidence: Evidence | None = None
    revocations: tuple[Revocation, ...] = ()

    @property
    def source(self) -> str:
        return self.publication.name

    @property
    def commit(self) -> str | None:
        return self.publication.commit

    @property
    def signed(self) -> SignedStatement | None:
        return self.publication.papers.signed

    def __getitem__(self, name: str) -> Level:
        return next(level for level in self.levels if level.name == name)

    @property
    def reached(self) -> str | None:
        """The highest level up to which all passed; `None` when V0 did not."""
        reached = None
        for level in self.levels:
            if level.outcome is not Outcome.PASSED:
                break
            reached = level.name
        return reached

    @property
    def failed(self) -> bool:
        """Whether anything speaks against the statement, beyond what is merely missing."""
        return any(level.outcome is Outcome.FAILED for level in self.levels)

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "commit": self.commit,
            "reached": self.reached,
            "failed": self.failed,
            "levels": [level.to_dict() for level in self.levels],
            "statement": self.signed.plain() if self.signed else None,
            "revocations": [revocation.plain() for revocation in self.revocations],
            "precommit_time": iso(self.dates.precommit),
            "statement_time": iso(self.dates.statement),
            "authorities": self.dates.authorities,
            "evidence": self.evidence.to_dict() if self.evidence else None,
        }


def iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
