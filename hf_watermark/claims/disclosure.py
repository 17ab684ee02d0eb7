"""Opening one sub-key for one dispute: signed over the judge's nonce, so that nobody can replay it (protocol.md §1.2, D1, D2)."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..hub.schema import Date, Hex64, Slug, Strict, validated
from ..hub.statement import format_date
from ..keys import Opening, Owner, WatermarkKey, is_signed_by
from ..serialization import InvalidInput, canonical_json, parse_json, read_json, write_json_atomic


DOMAIN = b"hf-watermark/disclosure/v1\x00"
BURNT_FILE = "burnt.json"


class Consent(Strict):
    """The owner's signature over nonce and opening."""

    nonce: Slug
    signature: Hex64


class BurntEntry(Strict):
    subkey: Annotated[int, Field(ge=0, lt=1024)]
    nonce: Slug
    date: Date


class Burnt(Strict):
    """`burnt.json` in the key folder: which sub-keys were opened, and for which dispute."""

    schema_: Annotated[Literal["hf-watermark/burnt-log/v1"], Field(alias="schema")]
    entries: Annotated[list[BurntEntry], Field(max_length=1024)]


class BurntPublic(Strict):
    """`watermark/burnt.json`: sub-keys that can prove nothing any more."""

    schema_: Annotated[Literal["hf-watermark/burnt/v1"], Field(alias="schema")]
    subkeys: Annotated[list[Annotated[int, Field(ge=0, lt=1024)]], Field(max_length=1024)]


@dataclass(frozen=True)
class Disclosure:
    """An opening, and the consent of its owner to one dispute (if it carries one)."""

    opening: Opening
    consent: Consent | None

    @classmethod
    def make(cls, key: WatermarkKey, owner: Owner, index: int, nonce: str) -> "Disclosure":
        """
        Raises:
            `ValueError`: when the key is another owner's, or the sub-key carries no mark.
        """
        if owner.public_key != key.public_key:
            raise InvalidInput(
                f"the key belongs to another owner than {owner.fingerprint}; give the owner who made it"
            )
        opening = Opening.of(key, index)
        consent = validated(Consent, {"nonce": nonce, "signature": "0" * 128}, "nonce")
        signature = owner.sign(_message(opening, consent.nonce)).hex()
        return cls(opening, Consent(nonce=consent.nonce, signature=signature))

    @classmethod
    def parse(cls, raw: bytes, pool: dict[str, Any] | None = None) -> "Disclosure":
        """
        Raises:
            [`~serialization.InvalidInput`]: when the file is no opening.
        """
        document = parse_json(raw, allow_floats=True)
        consent = document.pop("consent", None)
        opening = Opening.from_dict(document, pool)
        return cls(opening, None if consent is None else validated(Consent, consent, "opening: consent"))

    def problems(self, nonce: str | None) -> list[str]:
        """Why a judge who handed out `nonce` does not accept this opening; empty when he does."""
        if self.consent is None:
            return ["the opening carries no consent of its owner: it may be a replay"]
        found = []
        if nonce is not None and self.consent.nonce != nonce:
            found.append(f"the opening was made for another dispute ({self.consent.nonce}): it is a replay")
        message, signature = _message(self.opening, self.consent.nonce), bytes.fromhex(self.consent.signature)
        if not is_signed_by(self.opening.public_key, message, signature):
            found.append("the owner's consent does not fit this opening")
        return found

    def to_dict(self) -> dict[str, Any]:
        return self.opening.to_dict() | ({} if self.consent is None else {"consent": self.consent.plain()})


def _message(opening: Opening, nonce: str) -> bytes:
    return DOMAIN + canonical_json({"nonce": nonce, "opening": opening.to_dict()})


def burnt_subkeys(folder: Path) -> list[int]:
    """Sub-keys that were opened from this key folder."""
    return sorted({entry.subkey for entry in _log(folder).entries})


def burn(folder: Path, index: int, nonce: str) -> None:
    """Notes an opening in the key folder; an entry is never removed."""
    log = _log(folder).plain()
    log["entries"].append({"subkey": index, "nonce": nonce, "date": format_date(datetime.now(UTC))})
    write_json_atomic(folder / BURNT_FILE, validated(Burnt, log, BURNT_FILE).plain(), mode=0o600)


def _log(folder: Path) -> Burnt:
    path = folder / BURNT_FILE
    if not path.exists():
        return Burnt(schema="hf-watermark/burnt-log/v1", entries=[])  # type: ignore[call-arg]
    return validated(Burnt, read_json(path), str(path))
