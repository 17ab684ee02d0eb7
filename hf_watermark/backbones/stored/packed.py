"""What quantisers' formats are made of: headers to tell a format by, packed codes, and one scale for a group of columns."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...serialization import UnreadableFormat, shown
from ...serialization.tensors import ELEMENTS
from ..families import Shape


Get = Callable[[str], torch.Tensor]
# Most codes that are unpacked at once: computing them takes several words each.
AT_ONCE = 2**22
# Stored types that no weight of a plain file has: only then does anybody ask how they are meant.
CODES = frozenset("U8 I8 I16 U16 I32 U32 F4 F6_E2M3 F6_E3M2 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ".split())
# What a 4-bit float with two bits of exponent can be; the sign is the fourth bit.
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Parts:
    """
    A weight that is stored in several tensors, none of which is a weight.

    Args:
        form (`str`): Name of the format, for people.
        shape (`tuple[int, ...]`): That of the weight.
        names (`tuple[str, ...]`): The stored tensors.
        read (`Callable`): From a reader of stored tensors to the weight.
    """

    form: str
    shape: Shape
    names: tuple[str, ...]
    read: Callable[[Get], torch.Tensor]


@dataclass(frozen=True)
class Headers:
    """
    What can be told of a suspect before its values are read.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`): By name.
        dtypes (`Mapping[str, str]`): Stored types, as safetensors calls them.
        get (`Callable`): Reads one tensor; for small ones that say how the others are read.
        said (`dict`): The `quantization_config` of the suspect's own config.json. It decides only what the tensors leave open.
    """

    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    get: Get
    said: Mapping[str, Any] = field(default_factory=dict)

    def ending(self, suffix: str) -> Iterator[str]:
        """What stands before this suffix, for all names that have it."""
        return (name.removesuffix(suffix) for name in self.shapes if name.endswith(suffix))

    def codes(self, suffix: str) -> Iterator[str]:
        """The same for tensors that hold codes; a plain weight of such a name is a weight."""
        return (name for name in self.ending(suffix) if self.dtypes[name + suffix] in CODES)

    def known(self, *names: str) -> tuple[str, ...]:
        """Those of the names that are there."""
        return tuple(name for name in names if name in self.shapes)

    def is_like(self, name: str, dtypes: str, ndim: int = 2) -> bool:
        """Whether this tensor is there, of one of these types, with so many axes."""
        return name in self.shapes and self.dtypes[name] in dtypes.split() and len(self.shapes[name]) == ndim


def cannot(name: str, form: str, why: str) -> UnreadableFormat:
    return UnreadableFormat(f"{shown(name)} is stored as {form}, {why}; give the suspect dequantised")


def unreadable(name: str, form: str, names: tuple[str, ...], why: str, shape: Shape = ()) -> Parts:
    """A weight of a format that is known by name only, or that lacks a part."""

    def read(get: Get) -> torch.Tensor:
        raise cannot(name, form, why)

    return Parts(form, shape, names, read)


def is_shape(shape: Shape) -> bool:
    """Whether a decoded weight of this shape may be made at all: no more numbers than a stored one may have."""
    return all(size > 0 for size in shape) and math.prod(shape) <= ELEMENTS


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """
    Codes that lie end to end in the bits of words, the first in the lowest.

    Args:
        words (`torch.Tensor`): `[rows, n]`, uint8 or int32.
        bits (`int`): Of one code.
        count (`int`): Codes of a row.

    Returns:
        `torch.Tensor`: `[rows, count]`, uint8.
    """
    size = 8 * words.element_size()
    place = torch.arange(count) * bits
    word, shift = place // size, place % size
    behind = (word + 1).clamp(max=words.shape[1] - 1)
    codes = torch.empty(len(words), count, dtype=torch.uint8)
    step = max(1, AT_ONCE // count)
    for first in range(0, len(words), step):
        some = words[first : first + step].long() & (2**size - 1)
        low, high = some[:, word] >> shift, some[:, behind] << (size - shift)
        codes[first : first + step] = (low | high) & (2**bits - 1)
    return codes


def by_group(factors: torch.Tensor, columns: int, name: str, size: int | None = None) -> torch.Tensor:
    """
    One number for each group of consecutive columns as one for each column.

    Args:
        factors (`torch.Tensor`): `[rows, groups]`.
        size (`int`, *optional*): Columns of a group, where something else than the shapes says so.

    Raises:
        [`~serialization.UnreadableFormat`]: when the size of a group cannot be told.
    """
    groups = factors.shape[1]
    if groups in (1, columns):
        return factors.expand(len(factors), columns)
    size = size or group_size(columns, groups)
    if size is None or not (groups - 1) * size < columns <= groups * size:
        raise UnreadableFormat(
            f"{shown(name)} has {groups} factors for {columns} columns, and which belong together cannot be told; give the suspect dequantised"
        )
    return factors.repeat_interleave(size, dim=1)[:, :columns]


def group_size(columns: int, groups: int) -> int | None:
    """How many of `columns` share a factor: all alike, or a power of two with a smaller last group. `None` where both or neither could be meant."""
    if not 1 <= groups <= columns:
        return None
    powers = [2**power for power in range(24) if -(-columns // 2**power) == groups]
    even = {columns // groups} if columns % groups == 0 else set()
    found = even | set(powers[:1]) if len(powers) < 2 else even
    return found.pop() if len(found) == 1 else None


def finite(factors: torch.Tensor, name: str, form: str) -> torch.Tensor:
    """Scales as float32; what is NaN or infinite is no scale."""
    factors = factors.float()
    if not factors.isfinite().all():
        raise cannot(name, form, "with scales that are NaN or infinite")
    return factors


def as_fp4(packed: torch.Tensor) -> torch.Tensor:
    """Two 4-bit floats a byte, the first in the low half, as numbers: `[rows, 2 n]`."""
    codes = unpack(packed, 4, 2 * packed.shape[1]).long()
    return torch.tensor([*FP4, *(-value for value in FP4)])[codes]
