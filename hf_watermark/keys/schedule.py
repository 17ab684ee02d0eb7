"""
The key schedule: everything a mark depends on is derived, with integers only, from one 32-byte seed.

    seed ── HKDF-Expand ──► leaf secrets and blinds ──► Merkle root ──► precommit ──► [beacon] ──► sub-keys ──► streams
                      methods, layouts, pools, sub-keys, model record ────┘

HKDF-SHA-256 (RFC 5869) throughout, because a 32-byte seed is exactly one SHA-256 block long; leaves and inner nodes carry the
domain-separation prefixes of RFC 6962. The published test vector lives in `tests/keys/test_schedule.py`.
"""

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand


NO_BEACON = bytes(32)
MOST_LEAVES = 1024
STREAM_NAMES = ("carrier", "bits", "label", "rule", "projection", "order", "noise")


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def encode(*parts: bytes) -> bytes:
    """Injective encoding of a sequence of byte strings: each part behind its 8-byte big-endian length."""
    return b"".join(struct.pack(">Q", len(part)) + part for part in parts)


def digest(label: bytes, *parts: bytes) -> bytes:
    return hashlib.sha256(encode(label, *parts)).digest()


def expand(key: bytes, label: bytes, *parts: bytes) -> bytes:
    return HKDFExpand(hashes.SHA256(), 32, encode(label, *parts)).derive(key)


def leaf_secret(seed: bytes, index: int) -> bytes:
    return expand(seed, b"hfwm/v2/leaf", u32(index))


def leaf_blind(seed: bytes, index: int) -> bytes:
    return expand(seed, b"hfwm/v2/blind", u32(index))


def leaf_hash(index: int, secret: bytes, blind: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + encode(b"hfwm/v2/leaf", u32(index), secret, blind)).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def merkle_levels(leaves: list[bytes]) -> list[list[bytes]]:
    """All levels of the tree, leaves first, root last. The number of leaves must be a power of two."""
    if len(leaves) < 1 or len(leaves) & (len(leaves) - 1):
        raise ValueError(f"the number of sub-keys must be a power of two, got {len(leaves)}")
    levels = [leaves]
    while len(levels[-1]) > 1:
        below = levels[-1]
        levels.append([node_hash(below[i], below[i + 1]) for i in range(0, len(below), 2)])
    return levels


def inclusion_path(levels: list[list[bytes]], index: int) -> list[bytes]:
    return [level[(index >> depth) ^ 1] for depth, level in enumerate(levels[:-1])]


def root_from_path(index: int, secret: bytes, blind: bytes, path: Sequence[bytes]) -> bytes:
    """The root that an inclusion path leads to from `(secret, blind)` as leaf `index`."""
    node = leaf_hash(index, secret, blind)
    for sibling in path:
        node = node_hash(node, sibling) if index & 1 == 0 else node_hash(sibling, node)
        index >>= 1
    return node


def precommit_hash(public_key: bytes, root: bytes, count: int, spec: bytes) -> bytes:
    return digest(b"hfwm/v2/precommit", public_key, root, u32(count), spec)


def derive_subkey(
    secret: bytes, beacon: bytes, public_key: bytes, index: int, method: str, version: str, precommit: bytes
) -> bytes:
    """
    The sub-key of a leaf. It hangs on the whole precommit, so nothing that is committed (parameters, layout, pool, class names, number of
    sub-keys) can be chosen when it is known: with any change, every sub-key is another one.
    """
    info = encode(b"hfwm/v2/subkey", u32(index), method.encode(), version.encode(), precommit)
    return HKDF(hashes.SHA256(), 32, salt=encode(beacon, public_key), info=info).derive(secret)


class Stream:
    """
    An endless, reproducible sequence of integers: the ChaCha20 key stream of one named purpose of one sub-key.

    Integers only, so that the values are the same on every platform and library version.

    Args:
        subkey (`bytes`):
            32 secret bytes.
        name (`str`):
            One of `carrier`, `bits`, `label`, `rule`, `projection`, `order`.
    """

    def __init__(self, subkey: bytes, name: str):
        if name not in STREAM_NAMES:
            raise ValueError(f"stream `{name}` does not exist; choose one of {', '.join(STREAM_NAMES)}")
        key = expand(subkey, b"hfwm/v2/stream", name.encode())
        self._encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()

    def bytes(self, count: int) -> bytes:
        return self._encryptor.update(bytes(count))

    def words(self, count: int) -> np.ndarray:
        """`count` unsigned 64-bit integers (big-endian in the stream)."""
        return np.frombuffer(self.bytes(8 * count), dtype=">u8").astype(np.uint64)

    def bits(self, count: int) -> np.ndarray:
        """`count` bits as `int8` zeros and ones, most significant bit of each byte first."""
        packed = np.frombuffer(self.bytes((count + 7) // 8), dtype=np.uint8)
        return np.unpackbits(packed)[:count].astype(np.int8)

    def below(self, bound: int, count: int) -> np.ndarray:
        """`count` unbiased integers in `[0, bound)`, by rejection of 64-bit words."""
        limit = (1 << 64) // bound * bound
        drawn = np.empty(0, dtype=np.uint64)
        while len(drawn) < count:
            words = self.words(count - len(drawn))
            drawn = np.concatenate([drawn, words if limit == 1 << 64 else words[words < np.uint64(limit)]])
        return (drawn % np.uint64(bound)).astype(np.int64)

    def below_each(self, bounds: np.ndarray) -> np.ndarray:
        """One unbiased integer in `[0, bounds[i])` per entry: a 64-bit word modulo the bound. Words at or above the largest multiple of
        their bound are replaced, in order, by the next words until none is left."""
        bounds = bounds.astype(np.uint64)
        largest = ~(-bounds % bounds)  # 2**64 - 1 - (2**64 mod bound), in arithmetic modulo 2**64
        drawn = self.words(len(bounds))
        while len(refused := np.flatnonzero(drawn > largest)):
            drawn[refused] = self.words(len(refused))
        return (drawn % bounds).astype(np.int64)

    def distinct(self, size: int, count: int) -> np.ndarray:
        """`count` different integers of `range(size)` in random order: the first `count` steps of a Fisher-Yates shuffle, in which step i
        swaps place i with place i + r_i, and r_i is drawn below `size - i`. Costs `count` draws, however large `size` is."""
        steps = np.arange(count)
        places = steps + self.below_each(size - steps)
        # What a swap moves is read again only at a place that is drawn twice, or that is itself a later step: few of many.
        values, times = np.unique(places, return_counts=True)
        again = np.flatnonzero(np.isin(places, values[times > 1]) | (places < count))
        moved: dict[int, int] = {}
        chosen = places.copy()
        for step, place in zip(again.tolist(), places[again].tolist(), strict=True):
            chosen[step] = moved.get(place, place)
            moved[place] = moved.get(step, step)
        return chosen

    def permutations(self, count: int, size: int) -> np.ndarray:
        """`count` independent permutations of `range(size)`, shape `[count, size]`: the ranks of 64-bit words."""
        words = self.words(count * size).reshape(count, size)
        return np.argsort(words, axis=1, kind="stable")
