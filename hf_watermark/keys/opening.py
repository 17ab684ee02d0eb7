"""An opening: one disclosed sub-key with its inclusion proof, enough for a judge and no more."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..serialization import InvalidInput, read_json, write_json_atomic
from . import schedule
from .claim import Assignment, Claim, SubKey, check_pool, common_spec, exactly, pool_of, raw, refuse_others
from .owner import is_signed_by
from .watermark_key import WatermarkKey


OPENING_SCHEMA = "hf-watermark/opening/v1"
# `consent` is its owner's, to one dispute (`claims.Disclosure`); it says nothing about the sub-key.
FIELDS = (
    "schema", "index", "secret", "blind", "path", "assignment", "specs", "public_key", "subkey_count", "beacon", "beacon_source",
    "precommit", "signature", "consent",
)  # fmt: skip


@dataclass(frozen=True)
class Opening:
    """
    One disclosed sub-key. Anybody who holds it can recompute the commitment and read this sub-key's mark; it says nothing about
    the other sub-keys. It is burnt by being shown.

    Use [`Opening.of`] to make one from a key, and `verify(suspect, opening)` to read it.
    """

    index: int
    secret: bytes = field(repr=False)
    blind: bytes = field(repr=False)
    path: tuple[bytes, ...]
    assignment: Assignment
    specs: tuple[bytes, ...]
    public_key: bytes
    count: int
    beacon: bytes
    beacon_source: str
    precommit: bytes
    signature: bytes
    pool: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, key: WatermarkKey, index: int) -> "Opening":
        for assignment in key.assignments:
            if index in assignment.subkeys:
                break
        else:
            used = sorted(i for assignment in key.assignments for i in assignment.subkeys)
            raise ValueError(f"sub-key {index} carries no mark; this key uses {used}")
        secret, blind = key.leaf(index)
        return cls(
            index=index,
            secret=secret,
            blind=blind,
            path=tuple(key.inclusion_path(index)),
            assignment=assignment,
            specs=tuple(other.spec for other in key.assignments),
            public_key=key.public_key,
            count=key.count,
            beacon=key.beacon,
            beacon_source=key.beacon_source,
            precommit=key.precommit,
            signature=key.signature,
            pool=pool_of(assignment.method, key.pool),
        )

    def problems(self) -> list[str]:
        """Why this opening is inadmissible; empty when every commitment holds."""
        if not 0 <= self.index < self.count <= schedule.MOST_LEAVES:
            return [f"sub-key {self.index} of {self.count} does not exist"]
        found = []
        if self.index not in self.assignment.subkeys:
            found.append(f"sub-key {self.index} is not one of `{self.assignment.method}`")
        if len(self.beacon) != 32:
            found.append("the beacon is not 32 bytes")
        if self.assignment.spec not in self.specs:
            found.append("the method's parameters are not the committed ones")
        root = schedule.root_from_path(self.index, self.secret, self.blind, self.path)
        if self.count != 1 << len(self.path):
            found.append("the inclusion proof has the wrong length for this tree")
        elif (
            schedule.precommit_hash(self.public_key, root, self.count, common_spec(list(self.specs))) != self.precommit
        ):
            found.append("the sub-key is not in the committed tree")
        if not is_signed_by(self.public_key, b"hf-watermark/precommit/v1\x00" + self.precommit, self.signature):
            found.append("the owner's signature over the precommit does not verify")
        try:
            # Free source images would be free triggers: whoever chooses them can choose ones that answer as the key wants.
            check_pool((self.assignment,), self.pool, Path("pool"))
        except InvalidInput as error:
            found.append(str(error))
        return found

    def claims(self) -> list[Claim]:
        secret = schedule.derive_subkey(
            self.secret,
            self.beacon,
            self.public_key,
            self.index,
            self.assignment.method,
            self.assignment.version,
            self.assignment.spec,
        )
        slot = self.assignment.subkeys.index(self.index)
        return [Claim(self.assignment, (SubKey(self.index, slot, secret),), self.pool)]

    def to_dict(self) -> dict:
        return {
            "schema": OPENING_SCHEMA,
            "index": self.index,
            "secret": self.secret.hex(),
            "blind": self.blind.hex(),
            "path": [node.hex() for node in self.path],
            "assignment": self.assignment.to_dict(),
            "specs": [spec.hex() for spec in self.specs],
            "public_key": self.public_key.hex(),
            "subkey_count": self.count,
            "beacon": self.beacon.hex(),
            "beacon_source": self.beacon_source,
            "precommit": self.precommit.hex(),
            "signature": self.signature.hex(),
        }

    @classmethod
    def from_dict(cls, data: dict, pool: dict[str, torch.Tensor] | None = None) -> "Opening":
        try:
            if data["schema"] != OPENING_SCHEMA:
                raise InvalidInput(f"opening: schema is {data['schema']!r}, expected {OPENING_SCHEMA!r}")
            refuse_others(data, FIELDS)
            return cls(
                index=exactly(int, data["index"]),
                secret=raw(data["secret"]),
                blind=raw(data["blind"]),
                path=tuple(raw(node) for node in exactly(list, data["path"])),
                assignment=Assignment.from_dict(data["assignment"]),
                specs=tuple(raw(spec) for spec in exactly(list, data["specs"])),
                public_key=raw(data["public_key"]),
                count=exactly(int, data["subkey_count"]),
                beacon=raw(data["beacon"]),
                beacon_source=exactly(str, data["beacon_source"]),
                precommit=raw(data["precommit"]),
                signature=raw(data["signature"]),
                pool=pool or {},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInput(f"opening: malformed ({type(error).__name__}: {error})") from None

    def save(self, path: str | Path) -> Path:
        write_json_atomic(Path(path), self.to_dict())
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, pool: dict[str, torch.Tensor] | None = None) -> "Opening":
        return cls.from_dict(read_json(Path(path), allow_floats=True), pool)
