"""What a key's sub-keys are assigned to, and one method as its verifier needs it (PROTOCOL.md §2.2)."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from ..serialization import InvalidInput, canonical_json, named_tensors_digest
from . import entropy, schedule
from .context import ModelContext
from .problems import CommitmentProblem, ProblemKind


Kind = TypeVar("Kind")
# Opened in public on purpose where its method has others, so that everybody can see a mark; it proves nothing.
PUBLIC_SUBKEY = 0
OLD_FORMAT = (
    "was made by an earlier version of hf_watermark, whose verdicts could be forged; make a new key and train again"
)


@dataclass(frozen=True)
class SubKey:
    """One derived secret and where it stands: `slot` counts the sub-keys of the same method from 0."""

    index: int
    slot: int
    secret: bytes = field(repr=False)

    def stream(self, name: str) -> schedule.Stream:
        return schedule.Stream(self.secret, name)

    def decoy(self, seed: bytes | None = None) -> "SubKey":
        """
        The same place with an unrelated secret: what an independent key would look like to the same code.

        Args:
            seed (`bytes`, *optional*):
                Makes the decoy a function of sub-key and seed: whoever repeats a check gets the same decoys, and nobody without the sub-key
                knows them. Random by default, for simulations.
        """
        if seed is None:
            return replace(self, secret=entropy.draw(32))
        return replace(self, secret=schedule.expand(self.secret, b"hfwm/v2/decoy", seed))


@dataclass(frozen=True)
class Assignment:
    """
    Which sub-keys carry which method, and everything public that fixes what they mean.

    Args:
        method (`str`):
            Name of the method in `mapping.py`.
        config (`dict`):
            The method's config as JSON.
        layout (`dict`):
            What the config became on this backbone: carrier roles and shapes, number of classes, digest of the pool with its names.
        subkeys (`tuple[int, ...]`):
            Indices into the tree.
        salt (`bytes`):
            Hides the method from readers of the precommit until an opening discloses it.
    """

    method: str
    version: str
    config: dict
    layout: dict
    subkeys: tuple[int, ...]
    salt: bytes = field(repr=False)

    @property
    def spec(self) -> bytes:
        """Salted SHA-256 of the method and its parameters (PROTOCOL.md §2.1)."""
        public = {"method": self.method, "version": self.version, "config": self.config, "layout": self.layout}
        return hashlib.sha256(self.salt + canonical_json(public | {"subkeys": list(self.subkeys)})).digest()

    @property
    def share(self) -> "Share":
        return Share(self.spec, self.subkeys)

    def to_dict(self) -> dict:
        return {
            "method": self.method,
            "version": self.version,
            "config": self.config,
            "layout": self.layout,
            "subkeys": list(self.subkeys),
            "salt": self.salt.hex(),
        }

    @classmethod
    def from_dict(cls, data: dict) -> "Assignment":
        refuse_others(data, ("method", "version", "config", "layout", "subkeys", "salt"))
        return cls(
            method=exactly(str, data["method"]),
            version=exactly(str, data["version"]),
            config=dict(exactly(dict, data["config"])),
            layout=dict(exactly(dict, data["layout"])),
            subkeys=_indices(data["subkeys"]),
            salt=raw(data["salt"]),
        )


@dataclass(frozen=True)
class Share:
    """What a reader of the commitment may know of a method that is not opened: its salted digest, and its sub-keys."""

    spec: bytes
    subkeys: tuple[int, ...]

    def to_dict(self) -> dict:
        return {"spec": self.spec.hex(), "subkeys": list(self.subkeys)}

    @classmethod
    def from_dict(cls, data: dict) -> "Share":
        refuse_others(data, ("spec", "subkeys"))
        return cls(raw(data["spec"]), _indices(data["subkeys"]))


def _indices(value: object) -> tuple[int, ...]:
    found = tuple(exactly(int, index) for index in exactly(list, value))
    if not all(0 <= index < schedule.MOST_LEAVES for index in found):
        raise ValueError(f"sub-keys are numbered from 0 to {schedule.MOST_LEAVES - 1}")
    return found


def refuse_others(data: dict, fields: Iterable[str]) -> None:
    """Whatever a claimant adds to a document has no meaning, and must not look as if it had."""
    unknown = sorted(set(exactly(dict, data)) - set(fields))
    if unknown:
        raise ValueError(f"unknown field {unknown[0][:40]!r}")


def exactly(kind: type[Kind], value: object) -> Kind:
    """A value that was written as one of its kind: 2.0, "2" and `true` would be signed as something else than they are read as."""
    if type(value) is not kind:
        raise TypeError(f"{str(value)[:40]!r} is no {kind.__name__}")
    return value


def raw(text: object) -> bytes:
    """Bytes from their one spelling, lower-case hexadecimal digits."""
    found = bytes.fromhex(exactly(str, text))
    if found.hex() != text:
        raise ValueError("bytes are written in lower-case hexadecimal digits")
    return found


def common_spec(context: bytes, shares: Sequence[Share]) -> bytes:
    """One digest of the model record and of all methods with their sub-keys: what the precommit binds (PROTOCOL.md §2.2)."""
    parts = [schedule.encode(share.spec, *map(schedule.u32, share.subkeys)) for share in shares]
    return schedule.digest(b"hfwm/v2/spec", context, *parts)


def public_subkeys(shares: Sequence[Share]) -> frozenset[int]:
    """
    The sub-key that is opened in public on purpose. A method keeps its only sub-key to itself: its mark could never prove anything else.
    """
    opened = any(PUBLIC_SUBKEY in share.subkeys and len(share.subkeys) > 1 for share in shares)
    return frozenset({PUBLIC_SUBKEY}) if opened else frozenset()


def share_problems(shares: Sequence[Share], count: int) -> list[CommitmentProblem]:
    """Why methods cannot share a tree of `count` leaves: a sub-key that were used twice would count twice."""
    used = [index for share in shares for index in share.subkeys]
    found = []
    if not shares or not all(share.subkeys for share in shares):
        found.append(CommitmentProblem(ProblemKind.METHODS, "a method has no sub-key"))
    if len(set(used)) != len(used):
        found.append(CommitmentProblem(ProblemKind.SUBKEY, "a sub-key is used twice"))
    if any(not 0 <= index < count for index in used):
        found.append(CommitmentProblem(ProblemKind.TREE, f"a sub-key lies outside the tree of {count}"))
    return found


@dataclass(frozen=True)
class Claim:
    """
    One method as a verifier needs it. It holds what was derived from the key or committed before the sub-keys were, and nothing else: every
    other input of a verdict is chosen by the verifier or read from the suspect (PROTOCOL.md §2.3).

    Args:
        assignment ([`Assignment`]):
            Method, config, layout and the indices of all its sub-keys.
        subkeys (`tuple[SubKey, ...]`):
            Those that are at hand.
        pool (`dict[str, torch.Tensor]`):
            Source images of triggers, by committed names and contents.
        context ([`ModelContext`]):
            The owner's architecture, class names and normalisation.
    """

    assignment: Assignment
    subkeys: tuple[SubKey, ...]
    pool: dict[str, torch.Tensor] = field(repr=False)
    context: ModelContext = field(default_factory=ModelContext, repr=False)


def subkeys_of(
    assignment: Assignment,
    beacon: bytes,
    public_key: bytes,
    precommit: bytes,
    leaf: Callable[[int], tuple[bytes, bytes]],
) -> tuple[SubKey, ...]:
    return tuple(
        SubKey(
            index,
            slot,
            schedule.derive_subkey(
                leaf(index)[0], beacon, public_key, index, assignment.method, assignment.version, precommit
            ),
        )
        for slot, index in enumerate(assignment.subkeys)
    )


def pool_of(method: str, pool: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of one method: their names start with the method's."""
    return {name: tensor for name, tensor in pool.items() if name.startswith(f"{method}.")}


def pool_digest(pool: dict[str, torch.Tensor]) -> str:
    """What a layout says of its pool: names and contents of all tensors."""
    return named_tensors_digest(pool)


def check_pool(assignments: tuple[Assignment, ...], pool: dict[str, torch.Tensor], name: object = "the pool") -> None:
    """
    Raises:
        [`~serialization.InvalidInput`]: when the pool is not the committed one. Free source images would be free triggers: whoever chooses
            them can choose ones that any model answers as the key wants.
    """
    for assignment in assignments:
        wanted, own = assignment.layout.get("pool_sha256"), pool_of(assignment.method, pool)
        if wanted is None and own:
            raise InvalidInput(f"{name}: holds images for `{assignment.method}` that were never committed")
        if wanted is None:
            continue
        if not own:
            raise InvalidInput(f"{name}: missing; the triggers of `{assignment.method}` are made from it")
        if pool_digest(own) != wanted:
            raise InvalidInput(
                f"{name}: its digest is not the one in the key; it belongs to another key or was edited"
            )
