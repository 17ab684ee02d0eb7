"""What a key's sub-keys are assigned to, and one method as its verifier needs it."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from ..serialization import InvalidInput, canonical_json, tensor_set_digest
from . import schedule


Kind = TypeVar("Kind")


@dataclass(frozen=True)
class SubKey:
    """One derived secret and where it stands: `slot` counts the sub-keys of the same method from 0."""

    index: int
    slot: int
    secret: bytes = field(repr=False)

    def stream(self, name: str) -> schedule.Stream:
        return schedule.Stream(self.secret, name)

    def decoy(self) -> "SubKey":
        """The same place with an unrelated secret: what an independent key would look like to the same code."""
        return replace(self, secret=os.urandom(32))


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
            What the config became on this backbone: carrier roles and shapes, number of classes, digest of the pool.
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
        """Salted SHA-256 of the method and its parameters (protocol.md §2.1)."""
        public = {"method": self.method, "version": self.version, "config": self.config, "layout": self.layout}
        return hashlib.sha256(self.salt + canonical_json(public | {"subkeys": list(self.subkeys)})).digest()

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
            subkeys=tuple(exactly(int, index) for index in exactly(list, data["subkeys"])),
            salt=raw(data["salt"]),
        )


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


def common_spec(specs: list[bytes]) -> bytes:
    return schedule.digest(b"hfwm/v1/spec", *specs)


@dataclass(frozen=True)
class Claim:
    """One method as a verifier needs it: parameters, the disclosed sub-keys, and the pool of trigger images."""

    assignment: Assignment
    subkeys: tuple[SubKey, ...]
    pool: dict[str, torch.Tensor] = field(repr=False)


def subkeys_of(assignment: Assignment, beacon: bytes, public_key: bytes, leaf) -> tuple[SubKey, ...]:
    return tuple(
        SubKey(
            index,
            slot,
            schedule.derive_subkey(
                leaf(index)[0], beacon, public_key, index, assignment.method, assignment.version, assignment.spec
            ),
        )
        for slot, index in enumerate(assignment.subkeys)
    )


def pool_of(method: str, pool: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of one method: their names start with the method's."""
    return {name: tensor for name, tensor in pool.items() if name.startswith(f"{method}.")}


def check_pool(assignments: tuple[Assignment, ...], pool: dict[str, torch.Tensor], path: Path) -> None:
    for assignment in assignments:
        wanted = assignment.layout.get("pool_sha256")
        if wanted is None:
            continue
        own = pool_of(assignment.method, pool)
        if not own:
            raise InvalidInput(f"{path}: missing; the triggers of `{assignment.method}` are made from it")
        if tensor_set_digest(own) != wanted:
            raise InvalidInput(
                f"{path}: its digest is not the one in the key; it belongs to another key or was edited"
            )
