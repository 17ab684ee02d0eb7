"""Opening one sub-key for one dispute: signed over the judge's nonce, so that nobody can replay it (PROTOCOL.md §1.2, D1, D2)."""

import hashlib
from dataclasses import dataclass
from typing import Any

from ..keys import CommitmentProblem, Opening, Owner, ProblemKind, WatermarkKey, is_signed_by
from ..serialization import InvalidInput, canonical_json, parse_json
from ..serialization.schema import Hex64, Slug, Strict, validated


DOMAIN = b"hf-watermark/disclosure/v2\x00"


class Consent(Strict):
    """The owner's signature over nonce and opening."""

    nonce: Slug
    signature: Hex64


@dataclass(frozen=True)
class Disclosure:
    """An opening, and the consent of its owner to one dispute (if it carries one)."""

    opening: Opening
    consent: Consent | None

    @classmethod
    def make(cls, key: WatermarkKey, owner: Owner, index: int, nonce: str) -> "Disclosure":
        """
        Raises:
            [`~serialization.InvalidInput`]: when the key is another owner's, or the sub-key carries no mark.
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

    @property
    def nonce(self) -> str | None:
        """The dispute that its owner agreed to."""
        return None if self.consent is None else self.consent.nonce

    def problems(self, nonce: str) -> list[CommitmentProblem]:
        """Why a judge who handed out `nonce` does not accept this opening; empty when he does."""
        if self.consent is None:
            return [_refused("the opening carries no consent of its owner: it may be a replay")]
        found = []
        if self.consent.nonce != nonce:
            found.append(_refused(f"the opening was made for another dispute ({self.consent.nonce}): it is a replay"))
        message, signature = _message(self.opening, self.consent.nonce), bytes.fromhex(self.consent.signature)
        if not is_signed_by(self.opening.public_key, message, signature):
            found.append(_refused("the owner's consent does not fit this opening"))
        return found

    @property
    def digest(self) -> str:
        return hashlib.sha256(canonical_json(self.to_dict())).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return self.opening.to_dict() | ({} if self.consent is None else {"consent": self.consent.plain()})


def _refused(text: str) -> CommitmentProblem:
    return CommitmentProblem(ProblemKind.CONSENT, text)


def _message(opening: Opening, nonce: str) -> bytes:
    return DOMAIN + canonical_json({"nonce": nonce, "opening": opening.to_dict()})
