"""An opening: one disclosed sub-key with its inclusion proof, enough for a judge and no more."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..serialization import InvalidInput, read_json, write_json_atomic
from ..serialization.kinds import refuse_other_kinds
from . import schedule
from .claim import (
    OLD_FORMAT,
    Assignment,
    Claim,
    Share,
    SubKey,
    check_pool,
    common_spec,
    exactly,
    pool_of,
    public_subkeys,
    raw,
    refuse_others,
    share_problems,
)
from .context import ModelContext
from .owner import is_signed_by
from .problems import CommitmentProblem, ProblemKind
from .watermark_key import PRECOMMIT_DOMAIN, WatermarkKey


OPENING_SCHEMA = "hf-watermark/opening/v2"
# `consent` is its owner's, to one dispute (`claims.Disclosure`); it says nothing about the sub-key.
FIELDS = (
    "schema", "index", "secret", "blind", "path", "assignment", "methods", "model", "public_key", "subkey_count", "beacon",
    "beacon_source", "precommit", "signature", "subkey_sha256", "consent",
)  # fmt: skip


@dataclass(frozen=True)
class Opening:
    """
    One disclosed sub-key. Anybody who holds it can recompute the commitment and read this sub-key's mark; it says nothing about
    the other sub-keys. It is burnt by being shown.

    Use [`Opening.of`] to make one from a key, and `verify(suspect, opening)` to read it.

    Args:
        index (`int`):
            Number of the leaf.
        secret (`bytes`):
            32 bytes of the leaf.
        blind (`bytes`):
            32 bytes that hide the leaf in the tree until it is opened.
        path (`tuple[bytes, ...]`):
            Sibling hashes from the leaf up to the root, 32 bytes each.
        assignment ([`~keys.Assignment`]):
            The method of this sub-key, its parameters and layout.
        shares (`tuple[Share, ...]`):
            Digest and sub-keys of every method of the key.
        context ([`~keys.ModelContext`]):
            What is committed about the owner's model.
        public_key (`bytes`):
            The owner's Ed25519 public key, 32 bytes.
        count (`int`):
            Number of leaves of the tree.
        beacon (`bytes`):
            The value that the key is bound to; 32 zero bytes for none.
        beacon_source (`str`):
            Where it can be looked up, in words.
        precommit (`bytes`):
            The 32-byte commitment.
        signature (`bytes`):
            The owner's signature over it, 64 bytes.
        subkey_digest (`bytes`):
            Check value of the derived sub-key.
        pool (`dict[str, torch.Tensor]`, *optional*):
            Source images of this method's triggers.

    Example:

    ```python
    >>> opening = Opening.of(key, key.used[-1])
    >>> opening.save("opening.json")
    >>> print(verify("my-model", Opening.load("opening.json")).verdict)
    mark found
    ```
    """

    index: int
    secret: bytes = field(repr=False)
    blind: bytes = field(repr=False)
    path: tuple[bytes, ...]
    assignment: Assignment
    shares: tuple[Share, ...]
    context: ModelContext
    public_key: bytes
    count: int
    beacon: bytes
    beacon_source: str
    precommit: bytes
    signature: bytes
    subkey_digest: bytes
    pool: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, key: WatermarkKey, index: int) -> "Opening":
        """
        Opens one sub-key of a key.

        Raises:
            [`~serialization.InvalidInput`]: when this sub-key carries no mark.
        """
        for assignment in key.assignments:
            if index in assignment.subkeys:
                break
        else:
            raise InvalidInput(f"sub-key {index} carries no mark: {key.subkeys_in_words}")
        secret, blind = key.leaf(index)
        derived = _derive(secret, key.beacon, key.public_key, index, assignment, key.precommit)
        return cls(
            index=index,
            secret=secret,
            blind=blind,
            path=tuple(key.inclusion_path(index)),
            assignment=assignment,
            shares=tuple(other.share for other in key.assignments),
            context=key.context,
            public_key=key.public_key,
            count=key.count,
            beacon=key.beacon,
            beacon_source=key.beacon_source,
            precommit=key.precommit,
            signature=key.signature,
            subkey_digest=_check_value(derived, key.beacon_source),
            pool=pool_of(assignment.method, key.pool),
        )

    def problems(self) -> list[CommitmentProblem]:
        """Why this opening is inadmissible; empty when every commitment holds."""
        found = self.commitment_problems()
        try:
            check_pool((self.assignment,), self.pool, "the pool of the opening")
        except InvalidInput as error:
            found.append(CommitmentProblem(ProblemKind.POOL, str(error)))
        return found

    def commitment_problems(self) -> list[CommitmentProblem]:
        """The same without the pool, which is sent along with an opening and is no part of it."""
        if not 0 <= self.index < self.count <= schedule.MOST_LEAVES:
            return [CommitmentProblem(ProblemKind.TREE, f"sub-key {self.index} of {self.count} does not exist")]
        return share_problems(self.shares, self.count) or [
            CommitmentProblem(kind, text) for holds, kind, text in self._commitments() if not holds
        ]

    def _commitments(self) -> list[tuple[bool, ProblemKind, str]]:
        """What is compared with the commitment: whether it holds, what it is, and what is said where it does not."""
        root = schedule.root_from_path(self.index, self.secret, self.blind, self.path)
        spec = common_spec(self.context.digest, self.shares)
        precommit = schedule.precommit_hash(self.public_key, root, self.count, spec)
        fits = self.count == 1 << len(self.path)
        signed = is_signed_by(self.public_key, PRECOMMIT_DOMAIN + self.precommit, self.signature)
        return [
            (
                self.index in self.assignment.subkeys,
                ProblemKind.SUBKEY,
                f"sub-key {self.index} is not one of `{self.assignment.method}`",
            ),
            (len(self.beacon) == 32, ProblemKind.BEACON, "the beacon is not 32 bytes"),
            (
                self.assignment.share in self.shares,
                ProblemKind.METHODS,
                "the method's parameters are not the committed ones",
            ),
            (fits, ProblemKind.TREE, "the inclusion proof has the wrong length for this tree"),
            (
                not fits or precommit == self.precommit,
                ProblemKind.TREE,
                "sub-key, methods and model record are not in the committed tree",
            ),
            (signed, ProblemKind.SIGNATURE, "the owner's signature over the precommit does not verify"),
            (
                _check_value(self.derived, self.beacon_source) == self.subkey_digest,
                ProblemKind.SUBKEY,
                "the sub-key does not follow from leaf, beacon and commitment: the opening was edited",
            ),
        ]

    @property
    def derived(self) -> bytes:
        """The sub-key itself."""
        return _derive(self.secret, self.beacon, self.public_key, self.index, self.assignment, self.precommit)

    @property
    def used(self) -> list[int]:
        """All committed sub-keys of the key: as many as its owner could have chosen from."""
        return [index for share in self.shares for index in share.subkeys]

    @property
    def disclosed(self) -> frozenset[int]:
        """The public sub-key, if there is one: anybody could have planted its mark."""
        return public_subkeys(self.shares)

    @property
    def backbone(self) -> dict:
        """Config of the owner's own model."""
        return self.context.backbone

    def claims(self) -> list[Claim]:
        """One claim, with this sub-key alone."""
        slot = self.assignment.subkeys.index(self.index)
        return [Claim(self.assignment, (SubKey(self.index, slot, self.derived),), self.pool, self.context)]

    def to_dict(self) -> dict:
        """Plain JSON, bytes as hexadecimal text; the pool is sent along in a file of its own."""
        return {
            "schema": OPENING_SCHEMA,
            "index": self.index,
            "secret": self.secret.hex(),
            "blind": self.blind.hex(),
            "path": [node.hex() for node in self.path],
            "assignment": self.assignment.to_dict(),
            "methods": [share.to_dict() for share in self.shares],
            "model": self.context.to_dict(),
            "public_key": self.public_key.hex(),
            "subkey_count": self.count,
            "beacon": self.beacon.hex(),
            "beacon_source": self.beacon_source,
            "precommit": self.precommit.hex(),
            "signature": self.signature.hex(),
            "subkey_sha256": self.subkey_digest.hex(),
        }

    @classmethod
    def from_dict(cls, data: dict, pool: dict[str, torch.Tensor] | None = None) -> "Opening":
        """
        The opening that `to_dict` wrote. It may be a stranger's: [`Opening.problems`] says whether it holds.

        Raises:
            [`~serialization.InvalidInput`]: for another schema or a malformed field.
        """
        try:
            if data["schema"] == "hf-watermark/opening/v1":
                raise InvalidInput(f"opening: its key {OLD_FORMAT}")
            if data["schema"] != OPENING_SCHEMA:
                raise InvalidInput(f"opening: schema is {data['schema']!r}, expected {OPENING_SCHEMA!r}")
            refuse_others(data, FIELDS)
            return cls(
                index=exactly(int, data["index"]),
                secret=raw(data["secret"]),
                blind=raw(data["blind"]),
                path=tuple(raw(node) for node in exactly(list, data["path"])),
                assignment=Assignment.from_dict(data["assignment"]),
                shares=tuple(Share.from_dict(item) for item in exactly(list, data["methods"])),
                context=ModelContext.from_dict(data["model"]),
                public_key=raw(data["public_key"]),
                count=exactly(int, data["subkey_count"]),
                beacon=raw(data["beacon"]),
                beacon_source=exactly(str, data["beacon_source"]),
                precommit=raw(data["precommit"]),
                signature=raw(data["signature"]),
                subkey_digest=raw(data["subkey_sha256"]),
                pool=pool or {},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInput(
                f"opening: not in the form that `hf-watermark open` writes ({type(error).__name__}: {error}); ask for a fresh copy"
            ) from None

    def save(self, path: str | Path) -> Path:
        """Writes the JSON of `to_dict`, and returns the path."""
        write_json_atomic(Path(path), self.to_dict())
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, pool: dict[str, torch.Tensor] | None = None) -> "Opening":
        """The opening that `save` wrote; errors as in `from_dict`."""
        refuse_other_kinds(path, "an opening, as `hf-watermark open` writes it", "hf-watermark/opening/")
        return cls.from_dict(read_json(Path(path), allow_floats=True), pool)


def _derive(
    secret: bytes, beacon: bytes, public_key: bytes, index: int, assignment: Assignment, precommit: bytes
) -> bytes:
    return schedule.derive_subkey(secret, beacon, public_key, index, assignment.method, assignment.version, precommit)


def _check_value(derived: bytes, beacon_source: str) -> bytes:
    """What nobody without the sub-key could have written beside a beacon, which comes after the owner's signature."""
    return schedule.digest(b"hfwm/v2/opening", derived, beacon_source.encode())
