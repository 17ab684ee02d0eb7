"""The secret of one marked model: a tree of K sub-keys, each able to prove alone."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..serialization import InvalidInput, SafetensorsFolder, write_bytes_atomic
from ..serialization.kinds import refuse_other_kinds
from . import entropy, schedule
from .burnt import burnt_log
from .claim import (
    OLD_FORMAT,
    Assignment,
    Claim,
    check_pool,
    common_spec,
    exactly,
    pool_of,
    public_subkeys,
    raw,
    share_problems,
    subkeys_of,
)
from .context import ModelContext
from .envelope import read_envelope, write_envelope
from .folders import KEY_FILE, POOL_FILE, refuse_model_folder
from .owner import Owner, is_signed_by
from .problems import CommitmentProblem, ProblemKind


PRECOMMIT_SCHEMA = "hf-watermark/precommit/v2"
PRECOMMIT_DOMAIN = b"hf-watermark/precommit/v2\x00"
FORMAT = 2
KEY_FOLDER = "the owner's key folder: the one with the key.json that `key.save` wrote"


@dataclass(frozen=True)
class WatermarkKey:
    """
    The secret of one marked model.

    A key is made by a trainer (or by [`WatermarkKey.create`]), saved into a folder of its own beside the model, never inside it,
    and loaded again to verify. It survives `save` and `load` unchanged.

    Args:
        seed (`bytes`):
            32 random bytes; everything secret is derived from them.
        public_key (`bytes`):
            The owner's Ed25519 public key.
        assignments (`tuple[Assignment, ...]`):
            Methods and the sub-keys they use.
        count (`int`, *optional*, defaults to 16):
            Number of leaves of the tree (a power of two).
        beacon (`bytes`, *optional*):
            A public random value that did not exist when the precommit was published. 32 zero bytes mean none, and then the
            verdict needs level N.
        beacon_source (`str`, *optional*):
            Where the beacon can be looked up, in words.
        signature (`bytes`):
            64 bytes: the owner's signature over the precommit.
        context ([`ModelContext`], *optional*):
            The owner's own model: its config, so that a suspect's tensors can be run without the suspect's, class names in order, and
            normalisation. Committed.
        pool (`dict[str, torch.Tensor]`, *optional*):
            Source images of black-box triggers; the digest of their names and contents is part of the method's layout.
        burnt (`frozenset[int]`, *optional*):
            Sub-keys that were shown to somebody, from the log in the key folder. They never add evidence.

    Raises:
        [`~serialization.InvalidInput`]: for a tree or assignments that no owner could have committed to.

    Example:

    ```python
    >>> key = plan_key(model, None, WaterMASConfig(bits=256, subkeys=2), owner)
    >>> key.save("keys/planned", passphrase="correct horse battery")
    >>> WatermarkKey.load("keys/planned", passphrase="correct horse battery").precommit == key.precommit
    True
    ```
    """

    seed: bytes = field(repr=False)
    public_key: bytes
    assignments: tuple[Assignment, ...]
    count: int = 16
    beacon: bytes = schedule.NO_BEACON
    beacon_source: str = "none"
    signature: bytes = field(default=b"", repr=False)
    context: ModelContext = field(default_factory=ModelContext, repr=False)
    pool: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    burnt: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.count not in (1 << depth for depth in range(schedule.MOST_LEAVES.bit_length())):
            raise InvalidInput(f"key: a tree of {self.count} sub-keys does not exist")
        problems = share_problems([assignment.share for assignment in self.assignments], self.count)
        if problems:
            raise InvalidInput(f"key: {problems[0]}; it was edited, or made to count one secret several times")

    @classmethod
    def create(
        cls,
        owner: Owner,
        plans: list[tuple[str, str, dict, dict, int]],
        seed: bytes | None = None,
        count: int = 16,
        backbone: dict | None = None,
        pool: dict[str, torch.Tensor] | None = None,
        context: ModelContext | None = None,
    ) -> "WatermarkKey":
        """
        A fresh key for the given plans. [`plan_key`] makes them from a model and configs.

        Args:
            owner ([`Owner`]):
                Signs the commitment.
            plans (`list`):
                Tuples `(method, version, config, layout, number of sub-keys)`.
            seed (`bytes`, *optional*):
                32 bytes; random by default.
            count (`int`, *optional*, defaults to 16):
                Leaves of the tree, a power of two.
            backbone (`dict`, *optional*):
                Config of the owner's model, where there is no more to say about it than this.
            pool (`dict[str, torch.Tensor]`, *optional*):
                Source images of the plans' triggers.
            context ([`ModelContext`], *optional*):
                All that is committed about the owner's model, instead of `backbone`.

        Raises:
            `ValueError`: when the plans ask for more sub-keys than the tree has.
        """
        seed = entropy.draw(32) if seed is None else seed
        wanted = sum(plan[-1] for plan in plans)
        if wanted > count:
            raise ValueError(
                f"the methods ask for {wanted} sub-keys, the tree has {count}; lower `subkeys` in a config"
            )
        assignments = []
        for number, (plan, indices) in enumerate(zip(plans, _handed_out(plans), strict=True)):
            salt = schedule.expand(seed, b"hfwm/v2/salt", schedule.u32(number))
            assignments.append(Assignment(*plan[:4], indices, salt))
        context = ModelContext.of(backbone) if context is None else context
        key = cls(seed, owner.public_key, tuple(assignments), count, context=context, pool=pool or {})
        return replace(key, signature=owner.sign(PRECOMMIT_DOMAIN + key.precommit))

    # What is public

    @property
    def backbone(self) -> dict:
        """Config of the owner's own model."""
        return self.context.backbone

    @property
    def spec(self) -> bytes:
        """32 bytes: the digest of the model record and of all methods' parameters and layouts (PROTOCOL.md §1.2)."""
        return common_spec(self.context.digest, [assignment.share for assignment in self.assignments])

    @property
    def used(self) -> list[int]:
        """All sub-keys that carry a mark, method by method."""
        return [index for assignment in self.assignments for index in assignment.subkeys]

    @property
    def public(self) -> frozenset[int]:
        """The sub-key that everybody may know, if there is one."""
        return public_subkeys([assignment.share for assignment in self.assignments])

    @property
    def disclosed(self) -> frozenset[int]:
        """Sub-keys that somebody else may know: the public one and those of the log. Anybody could have planted their marks."""
        return self.burnt | self.public

    @property
    def subkeys_in_words(self) -> str:
        """Which sub-keys there are, as the end of a message."""
        used = sorted(self.used)
        gapless = len(used) > 2 and used == list(range(used[0], used[-1] + 1))
        said = f"{used[0]} to {used[-1]}" if gapless else " and ".join(map(str, used))
        return f"this key uses {said}" + "".join(f"; {index} is public" for index in sorted(self.public))

    @property
    def root(self) -> bytes:
        """32 bytes: the root of the Merkle tree over all leaves."""
        return self._levels()[-1][0]

    @property
    def precommit(self) -> bytes:
        """The 32-byte commitment that is published before training."""
        return schedule.precommit_hash(self.public_key, self.root, self.count, self.spec)

    def precommit_document(self) -> dict:
        """The content of `watermark/precommit.json`; nothing in it is secret."""
        return {
            "schema": PRECOMMIT_SCHEMA,
            "public_key": self.public_key.hex(),
            "subkey_root": self.root.hex(),
            "subkey_count": self.count,
            "spec_sha256": self.spec.hex(),
            "precommit": self.precommit.hex(),
            "signature": self.signature.hex(),
        }

    # What is secret

    def _levels(self) -> list[list[bytes]]:
        leaves = [schedule.leaf_hash(i, *self.leaf(i)) for i in range(self.count)]
        return schedule.merkle_levels(leaves)

    def leaf(self, index: int) -> tuple[bytes, bytes]:
        """Secret and blind of one leaf, 32 bytes each."""
        return schedule.leaf_secret(self.seed, index), schedule.leaf_blind(self.seed, index)

    def inclusion_path(self, index: int) -> list[bytes]:
        """Sibling hashes from one leaf up to the root, 32 bytes each."""
        return schedule.inclusion_path(self._levels(), index)

    def claims(self) -> list[Claim]:
        """One claim per method, with all of its sub-keys."""
        precommit = self.precommit
        return [
            Claim(
                assignment,
                subkeys_of(assignment, self.beacon, self.public_key, precommit, self.leaf),
                pool_of(assignment.method, self.pool),
                self.context,
            )
            for assignment in self.assignments
        ]

    def problems(self) -> list[CommitmentProblem]:
        """Why no verdict may rest on this key; empty when its owner signed all that it holds."""
        if not is_signed_by(self.public_key, PRECOMMIT_DOMAIN + self.precommit, self.signature):
            return [
                CommitmentProblem(ProblemKind.SIGNATURE, "the owner's signature does not fit this key; it was edited")
            ]
        try:
            check_pool(self.assignments, self.pool)
        except InvalidInput as error:
            return [CommitmentProblem(ProblemKind.POOL, str(error))]
        return []

    def bind_beacon(self, value: bytes, source: str) -> "WatermarkKey":
        """
        The same key bound to a public random value; do it after the precommit is published and *before* training, because
        every sub-key changes.

        Args:
            value (`bytes`):
                32 bytes that nobody could know when the precommit was published.
            source (`str`):
                Where to look it up, such as `"drand round 4711"`.

        Raises:
            `ValueError`: for a value of another size, or of zeros only.
        """
        if len(value) != 32 or value == schedule.NO_BEACON:
            raise ValueError(
                f"a beacon is 32 bytes, not all zero; got {len(value)} bytes. Hash the public value with SHA-256"
            )
        return replace(self, beacon=value, beacon_source=source)

    # At rest

    def save(self, folder: str | Path, passphrase: str | None = None, overwrite: bool = False) -> Path:
        """
        Writes `key.json` (mode 0600) and, where triggers need source images, `pool.safetensors` into `folder` (mode 0700).

        Raises:
            `ValueError`: when `folder` is, or lies inside, a model folder, where it would be published with the model.
            `FileExistsError`: when a key is already there and `overwrite` is not set.
        """
        folder = Path(folder)
        refuse_model_folder(folder)
        write_envelope(folder / KEY_FILE, self._payload(), passphrase, overwrite)
        if self.pool:
            from safetensors.torch import save

            write_bytes_atomic(folder / POOL_FILE, save(self.pool), mode=0o600, overwrite=True)
        return folder

    @classmethod
    def load(cls, folder: str | Path, passphrase: str | None = None) -> "WatermarkKey":
        """
        The key that `save` wrote, with the log of sub-keys that were shown.

        Raises:
            [`~keys.WrongPassphrase`]: when the passphrase is missing or wrong.
            [`~serialization.InvalidInput`]: when a file is missing, truncated, edited, or belongs to another key.
        """
        folder = Path(folder)
        path = folder / KEY_FILE
        if not path.exists():
            refuse_other_kinds(folder, KEY_FOLDER)
            raise InvalidInput(
                f"{folder}: {'is no folder' if folder.exists() else 'no such folder'}; expected {KEY_FOLDER}"
            )
        payload = read_envelope(path, passphrase)
        if payload.get("kind") != "watermark-key":
            raise InvalidInput(
                f"{path}: is another secret file of this library ({payload.get('kind')}); expected {KEY_FOLDER}"
            )
        if payload.get("format") != FORMAT:
            raise InvalidInput(f"{path}: {OLD_FORMAT}")
        pool = dict(SafetensorsFolder(folder / POOL_FILE)) if (folder / POOL_FILE).exists() else {}
        burnt = frozenset(entry.subkey for entry in burnt_log(folder))
        try:
            key = cls(
                seed=raw(payload["seed"]),
                public_key=raw(payload["public_key"]),
                assignments=tuple(Assignment.from_dict(item) for item in exactly(list, payload["assignments"])),
                count=exactly(int, payload["count"]),
                beacon=raw(payload["beacon"]),
                beacon_source=exactly(str, payload["beacon_source"]),
                signature=raw(payload["signature"]),
                context=ModelContext.from_dict(payload["model"]),
                pool=pool,
                burnt=burnt,
            )
            binding = raw(payload["binding"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"{path}: not a watermark key ({type(error).__name__}: {error})") from None
        check_pool(key.assignments, key.pool, folder / POOL_FILE)
        problems = key.problems()
        if problems:
            raise InvalidInput(f"{path}: {problems[0]}")
        if binding != key._binding:
            raise InvalidInput(f"{path}: the beacon is not the one that the key was bound to; the file was edited")
        return key

    @property
    def _binding(self) -> bytes:
        """What only the holder of the seed could have written beside the beacon, which comes after the owner's signature."""
        return schedule.expand(self.seed, b"hfwm/v2/binding", self.precommit, self.beacon, self.beacon_source.encode())

    def _payload(self) -> dict:
        return {
            "kind": "watermark-key",
            "format": FORMAT,
            "seed": self.seed.hex(),
            "public_key": self.public_key.hex(),
            "assignments": [assignment.to_dict() for assignment in self.assignments],
            "count": self.count,
            "beacon": self.beacon.hex(),
            "beacon_source": self.beacon_source,
            "binding": self._binding.hex(),
            "signature": self.signature.hex(),
            "model": self.context.to_dict(),
        }


def _handed_out(plans: list[tuple[str, str, dict, dict, int]]) -> list[tuple[int, ...]]:
    """
    The sub-keys of each plan: in this order, but methods with one alone come last. The public sub-key is the first of all, and a method that
    has others can spare it.
    """
    given: dict[int, tuple[int, ...]] = {}
    first = 0
    for number in sorted(range(len(plans)), key=lambda place: plans[place][-1] == 1):
        given[number] = tuple(range(first, first + plans[number][-1]))
        first += plans[number][-1]
    return [given[number] for number in range(len(plans))]
