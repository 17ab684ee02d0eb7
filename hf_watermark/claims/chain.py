"""
Append-only files: every entry names the digest of the one before it, so that none can be changed, moved or taken out of the middle.

Entries can be cut off at the end. Whoever keeps the head elsewhere notices.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..serialization import InvalidInput, canonical_json, parse_json, write_json_atomic
from ..serialization.files import naming, open_regular, read_all
from ..serialization.schema import Hex32, Strict, validated


NOTHING = "0" * 64
MOST_BRACKETS = 2**20


class Link(Strict):
    """An entry, with the digest of the entry before it."""

    previous: Hex32

    @property
    def digest(self) -> str:
        return hashlib.sha256(canonical_json(self.plain())).hexdigest()

    def problem(self) -> str | None:
        """What is wrong with this entry by itself."""
        return None


class Chain(Strict):
    """A file of links. `head` stands for all that is in it."""

    @property
    def links(self) -> Sequence[Link]:
        raise NotImplementedError

    @property
    def head(self) -> str:
        return self.links[-1].digest if self.links else NOTHING


Kind = TypeVar("Kind", bound=Chain)


def read_chain(kind: type[Kind], path: str | Path, name: str, max_bytes: int) -> Kind:
    """
    Raises:
        [`~serialization.InvalidInput`]: when the file is missing or malformed, or an entry was changed, moved or taken out of the middle.
    """
    with naming(path):
        with open_regular(path) as (file, _):
            raw = read_all(file, max_bytes)
        found = validated(kind, parse_json(raw, max_bytes, MOST_BRACKETS), name)
        previous = NOTHING
        for place, link in enumerate(found.links):
            if link.previous != previous:
                raise InvalidInput(f"entry {place} does not follow the one before it: the file was edited")
            problem = link.problem()
            if problem:
                raise InvalidInput(f"entry {place}: {problem}")
            previous = link.digest
    return found


def append(path: str | Path, chain: Kind, entry: dict[str, Any]) -> Kind:
    """Writes the file with one entry more, completely or not at all."""
    document = chain.plain()
    document["entries"] = [*document["entries"], {**entry, "previous": chain.head}]
    longer = validated(type(chain), document, str(path))
    write_json_atomic(Path(path), longer.plain())
    return longer
