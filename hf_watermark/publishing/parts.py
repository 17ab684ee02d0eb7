"""What a statement is made of: digests, claims of methods, fidelity, survival, certificates, timestamps."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from ..evidence import Verdict
from ..keys import fingerprint
from ..serialization.schema import Count, Decimal, Hex32, Log2, RelativePath, Slug, Strict, Text, validated


BasisPoints = Annotated[int, Field(ge=0, le=10_000)]
Point = Annotated[str, StringConstraints(pattern=r"^0[23][0-9a-f]{64}$")]
Plain = None | bool | Annotated[int, Field(gt=-(2**53), lt=2**53)] | Text


class File(Strict):
    """One uploaded file."""

    path: RelativePath
    sha256: Hex32
    size: Annotated[int, Field(ge=0, le=2**43)]


class Weights(Strict):
    """What binds the statement to a model: digests of files, and of tensors with and without their names."""

    files: Annotated[list[File], Field(min_length=1, max_length=2500)]
    named_tensors_sha256: Hex32
    tensor_set_sha256: Hex32
    tensors: Annotated[int, Field(ge=1, le=20_000)]
    parameters: Annotated[int, Field(ge=1, le=2**43)]

    @model_validator(mode="after")
    def _distinct(self) -> "Weights":
        if len({file.path for file in self.files}) != len(self.files):
            raise ValueError("a path is listed twice")
        return self


class MethodClaim(Strict):
    """One method, its public parameters, and what the owner read back from the published model."""

    name: Slug
    version: Slug
    config: Annotated[dict[Slug, Plain | list[Plain] | dict[Slug, Text]], Field(max_length=64)]
    spec_sha256: Hex32
    subkeys: Annotated[list[Annotated[int, Field(ge=0, lt=1024)]], Field(min_length=1, max_length=256)]
    access: Literal["weights", "probabilities", "labels"]
    matches: Count
    trials: Count
    log2_p: Log2


class Disclosed(Strict):
    """A sub-key that was opened, and the SHA-256 of the name (nonce) of the dispute for which it was: in this one it still counts."""

    subkey: Annotated[int, Field(ge=0, lt=1024)]
    nonce_sha256: Hex32


class Ancestor(Strict):
    """
    A key whose mark the model carried before this one was put in: of an earlier version, or of somebody else's model from which it was made.

    It is the signer's word. It binds him, who admits that the other model came first, and says nothing for or against anybody else.
    """

    precommit: Hex32
    public_key: Hex32
    statement_sha256: Hex32 | None

    @property
    def owner(self) -> str:
        """Fingerprint of the other key's owner."""
        return fingerprint(bytes.fromhex(self.public_key))


class Fidelity(Strict):
    """Task metric of the marked model and of its unmarked twin, in hundredths of a per cent; means over seeds."""

    metric: Slug = "accuracy"
    dataset: Text
    split: Slug = "test"
    seeds: Annotated[int, Field(ge=1, le=1000)] = 1
    marked_bp: BasisPoints
    twin_bp: BasisPoints | None = None

    @classmethod
    def of(cls, dataset: str, marked: float, twin: float | None = None, **fields: Any) -> "Fidelity":
        """From shares such as `0.9312`."""
        twin_bp = None if twin is None else round(10_000 * twin)
        return cls(dataset=dataset, marked_bp=round(10_000 * marked), twin_bp=twin_bp, **fields)

    @property
    def points(self) -> float | None:
        """Marked minus twin, in percentage points."""
        return None if self.twin_bp is None else (self.marked_bp - self.twin_bp) / 100


class Survival(Strict):
    """What one removal attack left of the mark and of the model."""

    attack: Text
    accuracy_bp: BasisPoints | None = None
    log2_p: Log2
    verdict: Annotated[Verdict, Field(strict=False)]

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Survival":
        """From a row of `survival_table`."""
        accuracy = row.get("accuracy")
        fields = {
            "attack": str(row["attack"]),
            "accuracy_bp": None if accuracy is None else round(10_000 * accuracy),
            "log2_p": rounded_up(row["log2_p"]),
            "verdict": str(row["verdict"]),
        }
        return validated(cls, fields, "survival table")


class CertifiedPoint(Strict):
    """The worst sub-key at one radius, in units of sigma."""

    radius: Decimal
    accuracy_bp: BasisPoints
    certified: bool


class CertificateClaim(Strict):
    """The owner's warranty against removal within a distance; never evidence against a suspect (PROTOCOL.md §3.6)."""

    sigma: Decimal
    norm: Text
    moves: Text
    triggers: Count
    draws: Count
    confidence: Decimal
    radius: Decimal
    curve: Annotated[list[CertifiedPoint], Field(min_length=1, max_length=64)]

    @classmethod
    def of(cls, certificate: dict[str, Any]) -> "CertificateClaim":
        """From `Certificate.to_dict()`."""
        worst: dict[float, tuple[float, bool]] = {}
        for curve in certificate["curves"].values():
            for row in curve:
                accuracy, certified = worst.get(row["radius"], (1.0, True))
                worst[row["radius"]] = (min(accuracy, row["accuracy"] or 0.0), certified and bool(row["certified"]))
        return cls(
            sigma=str(certificate["sigma"]),
            norm=certificate["norm"],
            moves=certificate["moves"],
            triggers=certificate["triggers"],
            draws=certificate["draws"],
            confidence=str(certificate["confidence"]),
            radius=str(float(certificate["radius"])),
            curve=[
                # Down, never up: a warranty is not rounded in the owner's favour.
                CertifiedPoint(radius=str(radius), accuracy_bp=math.floor(10_000 * accuracy), certified=certified)
                for radius, (accuracy, certified) in sorted(worst.items())
            ],
        )


class Stamp(Strict):
    """A file with a token of a timestamp authority (RFC 3161)."""

    kind: Literal["rfc3161"] = "rfc3161"
    path: RelativePath
    sha256: Hex32


def rounded_up(log2_p: float) -> int:
    """The weaker neighbouring integer: p-values are never rounded in the claimant's favour."""
    return min(0, math.ceil(log2_p))
