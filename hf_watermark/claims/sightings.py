"""
Statements that a reader has seen, in an append-only file of his own: where a split view shows (PROTOCOL.md §1.2, B9).

This is no transparency log. Nobody else witnesses the file, and who looks once learns nothing from it. What it does show, to a reader
who saw both or to two readers who compare their files, is that one history was told in two ways: every statement names the one that it
supersedes, so an honest owner never signs two with the same predecessor. Both are signed, so together they are proof for anybody.
"""

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from ..hub.schema import Date, Hex32, Strict, validated
from ..hub.statement import SignedStatement, format_date
from ..serialization import InvalidInput, canonical_json, parse_json, write_json_atomic
from ..serialization.files import naming, open_regular, read_all


MOST_BYTES, MOST_ENTRIES = 32 * 2**20, 5000
NOTHING = "0" * 64


class Sighting(Strict):
    """One statement with the moment and commit at which it was seen, and the digest of the entry before it."""

    date: Date
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None
    document: SignedStatement
    previous: Hex32

    @property
    def digest(self) -> str:
        return hashlib.sha256(canonical_json(self.plain())).hexdigest()


class Sightings(Strict):
    """The file. `head` stands for all that is in it: whoever keeps it elsewhere notices that an entry was changed or taken out."""

    schema_: Annotated[Literal["hf-watermark/sightings/v1"], Field(alias="schema")]
    entries: Annotated[list[Sighting], Field(max_length=MOST_ENTRIES)]

    @property
    def head(self) -> str:
        return self.entries[-1].digest if self.entries else NOTHING

    @property
    def statements(self) -> list[SignedStatement]:
        return [entry.document for entry in self.entries]


def read_sightings(path: str | Path) -> Sightings:
    """
    Raises:
        [`~serialization.InvalidInput`]: when the file is missing or malformed, an entry was changed, moved or taken out of the middle, or
            a statement in it is not signed.
    """
    with naming(path):
        with open_regular(path) as (file, _):
            raw = read_all(file, MOST_BYTES)
        found = validated(Sightings, parse_json(raw, MOST_BYTES, 2**20), "sightings")
        previous = NOTHING
        for place, entry in enumerate(found.entries):
            if entry.previous != previous:
                raise InvalidInput(f"entry {place} does not follow the one before it: the file was edited")
            if not entry.document.is_signed:
                raise InvalidInput(f"entry {place}: the signature of its statement does not fit")
            previous = entry.digest
    return found


def note_sighting(path: str | Path, signed: SignedStatement, commit: str | None = None) -> list[str]:
    """
    Appends a statement whose signature was checked, unless it is the latest of its model already; a missing file is begun.

    Returns:
        `list[str]`: what contradicts earlier sightings, see [`contradictions`]. The entry is made all the same: it is the proof.
    """
    path = Path(path)
    known = read_sightings(path) if path.exists() else Sightings(schema="hf-watermark/sightings/v1", entries=[])  # type: ignore[call-arg]
    if signed.statement.digest not in [old.statement.digest for old in known.statements]:
        entry: dict[str, Any] = {
            "date": format_date(datetime.now(UTC)),
            "commit": commit,
            "document": signed.plain(),
            "previous": known.head,
        }
        document = known.plain() | {"entries": [*known.plain()["entries"], entry]}
        write_json_atomic(path, validated(Sightings, document, str(path)).plain())
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
