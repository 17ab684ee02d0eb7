"""`watermark/precommit.json`: the commitment that is public before training begins (PROTOCOL.md §2.2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..keys import (
    PRECOMMIT_DOMAIN,
    CommitmentProblem,
    Opening,
    ProblemKind,
    WatermarkKey,
    is_signed_by,
    public_subkeys,
)
from ..keys.schedule import precommit_hash
from ..serialization import canonical_json, write_json_atomic
from ..serialization.schema import Hex32, Hex64, Strict, parsed


FOLDER = "watermark"
PRECOMMIT = f"{FOLDER}/precommit.json"
DOMAIN = PRECOMMIT_DOMAIN


def public_files(key: WatermarkKey, found: bool) -> dict[str, dict[str, Any]]:
    """The files of `watermark/` by name: the precommit, and once the mark was read back (`found`) the sub-key that is opened on purpose."""
    files = {"precommit.json": key.precommit_document()}
    if found:
        for index in sorted(public_subkeys([assignment.share for assignment in key.assignments])):
            files[f"subkey{index}.json"] = Opening.of(key, index).to_dict()
    return files


def write_public_files(folder: Path, files: Mapping[str, dict[str, Any]]) -> None:
    """Writes [`public_files`] into a model folder. Where they open nothing, what an earlier model there opened and stated goes."""
    (folder / FOLDER).mkdir(exist_ok=True)
    if files.keys() == {"precommit.json"}:
        for stale in [*(folder / FOLDER).glob("subkey*.json"), folder / FOLDER / "statement.json"]:
            stale.unlink(missing_ok=True)
    for name, document in files.items():
        write_json_atomic(folder / FOLDER / name, document)


class Precommit(Strict):
    """
    The public commitment to a key: no sub-key, method or position can be chosen after it.

    Args:
        public_key (`str`):
            The owner's Ed25519 key, hexadecimal.
        subkey_root, subkey_count:
            Root and size of the Merkle tree of sub-keys.
        spec_sha256 (`str`):
            Salted digest of methods with their sub-keys and parameters, and of the model record.
        precommit (`str`):
            Digest of all of these: what is timestamped.
        signature (`str`):
            The owner's signature over it.
    """

    schema_: Annotated[Literal["hf-watermark/precommit/v2"], Field(alias="schema")]
    public_key: Hex32
    subkey_root: Hex32
    subkey_count: Annotated[int, Field(ge=1, le=1024)]
    spec_sha256: Hex32
    precommit: Hex32
    signature: Hex64

    @classmethod
    def of(cls, key: WatermarkKey) -> "Precommit":
        return cls.model_validate(key.precommit_document())

    @classmethod
    def parse(cls, raw: bytes, name: str = "precommit") -> "Precommit":
        return parsed(cls, raw, name)

    def problems(self) -> list[CommitmentProblem]:
        """Why nobody should rely on this precommit; empty when digest and signature hold."""
        found = []
        public_key, root, spec = (
            bytes.fromhex(text) for text in (self.public_key, self.subkey_root, self.spec_sha256)
        )
        digest = bytes.fromhex(self.precommit)
        if precommit_hash(public_key, root, self.subkey_count, spec) != digest:
            edited = "the precommit is not the digest of its fields: it was edited"
            found.append(CommitmentProblem(ProblemKind.TREE, edited))
        if not is_signed_by(public_key, DOMAIN + digest, bytes.fromhex(self.signature)):
            unsigned = "the owner's signature over the precommit does not verify"
            found.append(CommitmentProblem(ProblemKind.SIGNATURE, unsigned))
        return found

    @property
    def stamped(self) -> bytes:
        """The bytes that a timestamp authority dates."""
        return DOMAIN + bytes.fromhex(self.precommit)

    def to_bytes(self) -> bytes:
        return canonical_json(self.plain()) + b"\n"


__all__ = ["DOMAIN", "FOLDER", "PRECOMMIT", "Precommit"]
