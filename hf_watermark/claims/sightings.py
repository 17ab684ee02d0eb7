"""
Statements that a reader has seen, in an append-only file of his own: where a split view shows (PROTOCOL.md §1.2, B9).

This is no transparency log. Nobody else witnesses the file, and who looks once learns nothing from it. What it does show, to a reader
who saw both or to two readers who compare their files, is that one history was told in two ways: every statement names the one that it
supersedes, so an honest owner never signs two with the same predecessor. Both are signed, so together they are proof for anybody.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from ..publishing.statement import SignedStatement, format_date
from ..serialization.schema import Date
from .chain import NOTHING, Chain, Link, append, read_chain


MOST_BYTES, MOST_ENTRIES = 32 * 2**20, 5000


class Sighting(Link):
    """One statement with the moment and commit at which it was seen."""

    date: Date
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None
    document: SignedStatement

    def problem(self) -> str | None:
        return None if self.document.is_signed else "the signature of its statement does not fit"


class Sightings(Chain):
    """The file."""

    schema_: Annotated[Literal["hf-watermark/sightings/v1"], Field(alias="schema")]
    entries: Annotated[list[Sighting], Field(max_length=MOST_ENTRIES)]

    @property
    def links(self) -> list[Sighting]:
        return self.entries

    @property
    def statements(self) -> list[SignedStatement]:
        return [entry.document for entry in self.entries]


def read_sightings(path: str | Path) -> Sightings:
    """
    Raises:
        [`~serialization.InvalidInput`]: when the file is missing or malformed, an entry was changed, moved or taken out of the middle, or
            a statement in it is not signed.
    """
    return read_chain(Sightings, path, "sightings", MOST_BYTES)


def note_sighting(path: str | Path, signed: SignedStatement, commit: str | None = None) -> list[str]:
    """
    Appends a statement whose signature was checked, unless it is the latest of its model already; a missing file is begun.

    Returns:
        `list[str]`: what contradicts earlier sightings, see [`contradictions`]. The entry is made all the same: it is the proof.
    """
    path = Path(path)
    known = read_sightings(path) if path.exists() else Sightings(schema="hf-watermark/sightings/v1", entries=[])  # type: ignore[call-arg]
    if signed.statement.digest not in [old.statement.digest for old in known.statements]:
        date = format_date(datetime.now(UTC))
        append(path, known, {"date": date, "commit": commit, "document": signed.plain()})
    return contradictions([signed], known.statements)


def contradictions(some: Iterable[SignedStatement], others: Iterable[SignedStatement]) -> list[str]:
    """
    Why two sets of signed statements cannot come from one history: for the same model, two owners, or two statements that supersede the
    same one. Statements that were missed in between are no contradiction, and nothing follows from them.
    """
    found, others = [], list(others)
    for here in (signed.statement for signed in some):
        for there in (signed.statement for signed in others):
            if here.model_id != there.model_id or here.digest == there.digest:
                continue
            pair = f"{here.model_id}: statements {here.digest[:16]} and {there.digest[:16]}"
            if here.public_key != there.public_key:
                found.append(f"{pair} are of two owners, {here.fingerprint} and {there.fingerprint}")
            elif here.supersedes == there.supersedes:
                place = f"supersede {here.supersedes[:16]}" if here.supersedes else "claim to be the first one"
                found.append(f"{pair} both {place}: a split view, a rewritten history, or two branches")
    return sorted(set(found))


__all__ = ["NOTHING", "Sighting", "Sightings", "contradictions", "note_sighting", "read_sightings"]
