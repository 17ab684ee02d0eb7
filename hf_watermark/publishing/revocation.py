"""
`watermark/revocation.json`: from when on an owner makes no more claims with a key (PROTOCOL.md §2.11).

A revocation takes something from its owner only. `since` is his own word, so it may lie in the past, and bars his claims from then on. To others
it says nothing: what he signed before stays signed, and a model that carries his mark does not stop carrying it. So nobody can disown a
model by it, and nobody but the owner who signed the precommit can revoke a key.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..keys import Owner, is_signed_by
from ..serialization import JSON_BYTES, InvalidInput, canonical_json
from ..serialization.files import naming, open_regular, read_all
from ..serialization.schema import Date, Hex32, Hex64, Strict, parsed, validated
from .precommit import FOLDER, Precommit
from .statement import Statement, format_date, parse_date


REVOCATION = f"{FOLDER}/revocation.json"
DOMAIN = b"hf-watermark/revocation/v1\x00"
SCHEMA: Literal["hf-watermark/revocation/v1"] = "hf-watermark/revocation/v1"
MOST = 64


class Revocation(Strict):
    """
    What the owner signs.

    Args:
        precommit (`str`):
            Names the key, and through its digest the owner.
        public_key (`str`):
            The owner's Ed25519 key, which signed the precommit.
        since (`str`):
            A statement counts only if it is older; of a leaked key, so must the suspect be.
        reason (`str`):
            `leaked`: others may have put the mark into models since. `superseded`: another key took its place, and this one is kept secret.
    """

    precommit: Hex32
    public_key: Hex32
    since: Date
    reason: Literal["leaked", "superseded"]

    @model_validator(mode="after")
    def _dated(self) -> "Revocation":
        if parse_date(self.since) is None:
            raise ValueError(f"since is {self.since}, a date that does not exist")
        return self

    @property
    def moment(self) -> datetime:
        found = parse_date(self.since)
        assert found is not None  # validated
        return found

    @property
    def to_sign(self) -> bytes:
        return DOMAIN + canonical_json(self.plain())

    def __str__(self) -> str:
        return f"its owner revoked the key {self.precommit[:16]} from {self.since} on ({self.reason})"


class SignedRevocation(Strict):
    """A revocation with its owner's Ed25519 signature."""

    revocation: Revocation
    signature: Hex64

    @property
    def is_signed(self) -> bool:
        key, signature = bytes.fromhex(self.revocation.public_key), bytes.fromhex(self.signature)
        return is_signed_by(key, self.revocation.to_sign, signature)


class Revocations(Strict):
    """The file: a repository keeps those of all keys that it ever had. An entry is never taken out."""

    schema_: Annotated[Literal["hf-watermark/revocation/v1"], Field(alias="schema")] = SCHEMA
    entries: Annotated[list[SignedRevocation], Field(max_length=MOST)] = []

    @classmethod
    def parse(cls, raw: bytes, name: str = REVOCATION) -> "Revocations":
        """
        Raises:
            [`~serialization.InvalidInput`]: when the file is no such document; who signed it is another question.
        """
        return parsed(cls, raw, name)

    @classmethod
    def read(cls, path: str | Path) -> "Revocations":
        """The same from a file of its own, as somebody hands it to a judge."""
        with naming(path), open_regular(path) as (file, _):
            return cls.parse(read_all(file, JSON_BYTES), "revocation")

    def with_(self, others: Iterable[SignedRevocation]) -> "Revocations":
        """
        With further entries; what its owner did not sign is left out.

        Raises:
            [`~serialization.InvalidInput`]: when they are too many.
        """
        entries = {entry.signature: entry.plain() for entry in (*self.entries, *others) if entry.is_signed}
        return validated(Revocations, {"schema": SCHEMA, "entries": list(entries.values())}, REVOCATION)

    def to_bytes(self) -> bytes:
        return canonical_json(self.plain()) + b"\n"


def revoke(owner: Owner, precommit: Precommit, reason: str, since: datetime) -> SignedRevocation:
    """
    Raises:
        [`~serialization.InvalidInput`]: when the precommit is another owner's, or the reason is none.
    """
    if precommit.public_key != owner.public_key.hex():
        raise InvalidInput(
            f"the key belongs to another owner than {owner.fingerprint}; only who committed to it can revoke it"
        )
    fields = {"precommit": precommit.precommit, "public_key": precommit.public_key, "since": format_date(since)}
    revocation = validated(Revocation, fields | {"reason": reason}, "revocation")
    return SignedRevocation(revocation=revocation, signature=owner.sign(revocation.to_sign).hex())


def concerning(statement: Statement, known: Iterable[SignedRevocation]) -> tuple[Sequence[Revocation], int]:
    """
    The revocations of a statement's key, each once, the earliest first; and how many name this key and were not signed by its owner.
    """
    named = [entry for entry in known if entry.revocation.precommit == statement.precommit]
    holding = [entry for entry in named if entry.is_signed and entry.revocation.public_key == statement.public_key]
    unique = {entry.revocation.to_sign: entry.revocation for entry in holding}
    return sorted(unique.values(), key=lambda item: item.since), len(named) - len(holding)


__all__ = ["DOMAIN", "REVOCATION", "Revocation", "Revocations", "SignedRevocation", "concerning", "revoke"]
