"""Carriers of one backbone: a public layout fixed once, and canonical rows read by it."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from ..serialization import InvalidInput, Unreadable
from .families import Found, Shape, find_carriers, find_stem


STEM = "stem"
MAX_SIZE = 2**24
MAX_CARRIERS = 4096
MAX_NAME = 1024
WITNESS_ROWS = 64


class LayoutMismatch(Unreadable):
    """The suspect does not have the tensors that the key's carriers lie in."""


@dataclass(frozen=True)
class Carrier:
    """
    One carrier tensor as part of the public layout.

    Args:
        role (`str`):
            `"<family>.<ordinal>"`, `"stem"`, or a tensor name chosen by hand.
        rows (`int`):
            Number of output channels.
        columns (`int`):
            Inputs per row: input channels x kernel height x kernel width.
        stride (`int`):
            Kernel height x width, to tell which columns belong to one input channel.
        every_third_input (`bool`):
            Only input channels 2, 5, 8 ... carry.
        shape (`tuple[int, ...]`):
            Full shape, `[out, in, height, width]` or `[out, in]`.
        alike (`int`):
            How many tensors of this shape that model has, where it is of no known family; else 0.
        name (`str`):
            The tensor in the model that the layout was made for. Where a suspect has it under any prefix, no other tensor can be mistaken
            for it. Names are no part of what makes two layouts equal.
        scale (`str`, *optional*):
            The vector behind it in that model, if there was one.
        centred (`bool`):
            Rows are read without their mean, because the forward pass subtracts it (weight standardisation).
        witness (`str`):
            How its first rows were spread there, a byte each; see `witness.py`. Empty where there is none.
    """

    role: str
    rows: int
    columns: int
    stride: int = 1
    every_third_input: bool = False
    shape: tuple[int, ...] = ()
    alike: int = field(default=0, compare=False)
    name: str = field(default="", compare=False)
    scale: str | None = field(default=None, compare=False)
    centred: bool = False
    witness: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.shape:
            side = math.isqrt(self.stride)
            kernel = () if self.stride == 1 else (side, side) if side**2 == self.stride else (self.stride, 1)
            object.__setattr__(self, "shape", (self.rows, self.columns // self.stride, *kernel))

    @property
    def eligible(self) -> int:
        """Number of columns that may carry."""
        inputs = self.columns // self.stride
        return (inputs // 3 if self.every_third_input else inputs) * self.stride

    def to_dict(self) -> dict:
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: Any) -> "Carrier":
        """
        Raises:
            [`~serialization.InvalidInput`]: for anything that `to_dict` would not have written.
        """
        if not isinstance(data, dict) or set(data) != set(cls.__dataclass_fields__):
            raise InvalidInput(
                f"layout: a carrier needs exactly the fields {sorted(cls.__dataclass_fields__)}, got {data!r:.200}"
            )
        sizes = [data["rows"], data["columns"], data["stride"]]
        if not all(type(size) is int and 1 <= size <= MAX_SIZE for size in sizes) or data["columns"] % data["stride"]:
            raise InvalidInput(f"layout: rows, columns and stride {sizes} of a carrier do not describe a weight")
        if type(data["alike"]) is not int or not 0 <= data["alike"] <= MAX_SIZE:
            raise InvalidInput("layout: `alike` of a carrier must be a whole number")
        if type(data["role"]) is not str or not all(
            type(data[name]) is bool for name in ("every_third_input", "centred")
        ):
            raise InvalidInput(
                "layout: `role` of a carrier must be text, `every_third_input` and `centred` true or false"
            )
        _refuse_shape(data)
        for field_name in ("name", "scale"):
            text = data[field_name]
            if not (text is None and field_name == "scale") and (type(text) is not str or len(text) > MAX_NAME):
                raise InvalidInput(
                    f"layout: `{field_name}` of a carrier must be text of at most {MAX_NAME} characters"
                )
        if type(data["witness"]) is not str or not re.fullmatch(
            rf"(?:[0-9a-f]{{2}}){{0,{WITNESS_ROWS}}}", data["witness"]
        ):
            raise InvalidInput(
                f"layout: `witness` of a carrier must be at most {WITNESS_ROWS} bytes in hexadecimal digits"
            )
        return cls(**data | {"shape": tuple(data["shape"])})

    def select(self, matrix: torch.Tensor) -> torch.Tensor:
        """Keeps the eligible columns of `[rows, columns]`, giving `[rows, eligible]`."""
        if not self.every_third_input:
            return matrix
        inputs = matrix.reshape(len(matrix), -1, self.stride)
        return inputs[:, 2::3][:, : inputs.shape[1] // 3].flatten(1)

    def centre(self, weight: torch.Tensor) -> torch.Tensor | None:
        """Mean of every row of `[rows, in, ...]` that is taken away before it is read, `[rows, 1]`; `None` where nothing is."""
        return weight.detach().flatten(1).mean(dim=1, keepdim=True, dtype=torch.float64) if self.centred else None


def read_carriers(layout: Mapping[str, Any]) -> list[Carrier]:
    """The carriers of a layout that may come from a stranger's opening; [`~serialization.InvalidInput`] if it is malformed."""
    listed = layout.get("carriers")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_CARRIERS:
        raise InvalidInput(f"layout: `carriers` must be a list of 1 to {MAX_CARRIERS} carriers")
    carriers = [Carrier.from_dict(item) for item in listed]
    if len({carrier.role for carrier in carriers}) != len(carriers):
        raise InvalidInput("layout: a carrier is listed twice, so one weight would count twice")
    return carriers


def describe(shapes: Mapping[str, Shape], layers: Iterable[str] | None = None) -> list[Carrier]:
    """
    The carriers of a backbone.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`):
            Name and shape of every tensor.
        layers (`Iterable[str]`, *optional*):
            Roles (or tensor names) to use instead of every carrier of the family; `"stem"` is the first convolution.
    """
    chosen = None if layers is None else list(layers)
    if chosen is None:
        family, found = find_carriers(shapes)
        return [carrier_at(role, item, shapes, family.every_third_input) for role, item in found.items()]
    roles = [_role_of(name, shapes) for name in chosen]
    return [carrier_at(role, locate(role, shapes), shapes, role.startswith("vgg.")) for role in roles]


def refuse_other_shapes(carriers: Iterable[Carrier], shapes: Mapping[str, Shape]) -> None:
    """
    Raises:
        [`LayoutMismatch`]: when a key's carriers are not the tensors that its roles name in this model.
    """
    for carrier in carriers:
        found = carrier_at(carrier.role, locate(carrier.role, shapes), shapes, carrier.every_third_input)
        if replace(found, centred=carrier.centred) != carrier:
            raise LayoutMismatch(
                "the key was made for another backbone: the weights that it marks have other shapes here; make a fresh key"
            )


def locate(role: str, shapes: Mapping[str, Shape]) -> Found:
    """Names of one role in one state dict."""
    if role == STEM:
        return Found(find_stem(shapes), None)
    if role in shapes:
        return Found(role, None)
    try:
        _, found = find_carriers(shapes)
    except InvalidInput:
        found = {}
    if role not in found:
        known = ", ".join([*found, STEM]) if found else "no layers that are known"
        raise LayoutMismatch(f"layer {role!r} does not exist in this model, which has: {known}")
    return found[role]


def canonical_form(carrier: Carrier, weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """
    Canonical eligible weights of some or all rows of one carrier, `[rows, eligible]`, float32.

    A row is divided by its root mean square and multiplied by the sign of the BatchNorm weight or LayerScale that follows. This is
    the folded weight up to a positive factor per row, so row scaling and sign flips across BatchNorm, which cost a thief
    nothing, leave it unchanged. Rows that the forward pass standardises lose their mean first, but what is zero stays zero and says nothing. A
    dead row (zero scale, zero weights, or any that are not finite) is all zero. Differentiable in the weights, with the row's mean and scale
    held constant.

    Args:
        weight (`torch.Tensor`):
            The rows as stored, `[rows, in, height, width]` or `[rows, in]`, in any float type.
        scale (`torch.Tensor`, *optional*):
            The vector behind these rows.
    """
    rows, centre = carrier.select(weight.reshape(len(weight), -1)), carrier.centre(weight)
    rows = rows if rows.dtype == torch.float64 else rows.float()
    if centre is not None:
        rows = torch.where(rows == 0, 0, rows.double() - centre)
    stored = rows.detach()
    least, most = torch.aminmax(stored, dim=1, keepdim=True)
    largest = torch.maximum(most, -least)
    usable = largest.isfinite() & (largest > 0)
    # By the largest weight first: squares of what a thief may write (1e30 behind a dead channel, 1e-30 in a compensated row) do not
    # exist in float32.
    rows = rows / torch.where(usable, largest, 1)
    size = _norms(rows.detach()) / rows.shape[1] ** 0.5
    rows = torch.where(usable, rows / torch.where(usable, size, 1).to(rows.dtype), 0).float()
    if scale is not None:
        rows = rows * scale.detach().float().flatten().sign().nan_to_num(0)[:, None]
    return _with_what_was_lost(rows, stored)


def level(rows: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """`[rows, columns]` whose mean is zero, all of it taken out of the weights that are not `held`."""
    free = (~held).sum(dim=1, keepdim=True)
    return torch.where(held | (free == 0), rows, rows - rows.sum(dim=1, keepdim=True) / free.clamp_min(1))


def _norms(rows: torch.Tensor) -> torch.Tensor:
    """Euclidean norms of rows, `[rows, 1]`, float64; some rows at a time, which stay in the processor's cache."""
    return torch.cat([torch.linalg.vector_norm(some.double(), dim=1, keepdim=True) for some in rows.split(64)])


def _with_what_was_lost(rows: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Rows in which one weight dwarfs the others by more than float32 can hold, scaled by the others instead."""
    lost = ((rows.detach() == 0) & (stored != 0)).any(dim=1) & rows.detach().any(dim=1) & stored.isfinite().all(dim=1)
    if not lost.any():
        return rows
    weights = stored[lost].double()
    magnitudes = weights.abs()
    middle = magnitudes.where(magnitudes > 0, torch.nan).nanmedian(dim=1, keepdim=True).values
    sign = (rows.detach()[lost].double() * weights).sum(dim=1, keepdim=True).sign()
    rows = rows.clone()
    rows[lost] = (sign * (weights / middle).clamp(-1e30, 1e30)).float()
    return rows


def slot_rows(number: int, rows: int, slot: int, subkeys: int) -> range:
    """
    The rows of one carrier that one of `subkeys` slots owns: block (slot + number) mod subkeys of as many nearly equal blocks.

    Blocks, because one opened sub-key of a remote checkpoint is then read by a few ranges. They turn from carrier to carrier, so that the
    ends of a few carriers hold bits of several sub-keys.

    Args:
        number, rows (`int`):
            Place of the carrier in the layout, and its number of rows.
    """
    block = (slot + number) % subkeys
    return range(rows * block // subkeys, rows * (block + 1) // subkeys)


def own_rows(rows: Mapping[str, torch.Tensor], slot: int, subkeys: int) -> torch.Tensor:
    """The canonical rows of every carrier that the slot owns, in carrier order, laid end to end: all that one sub-key reads."""
    owned = ((matrix, slot_rows(number, len(matrix), slot, subkeys)) for number, matrix in enumerate(rows.values()))
    return torch.cat([matrix[own.start : own.stop].reshape(-1) for matrix, own in owned])


def carrier_at(role: str, found: Found, shapes: Mapping[str, Shape], every_third_input: bool) -> Carrier:
    shape = tuple(shapes[found.weight])
    if not shape:
        raise InvalidInput(
            f"layer {role!r} ({found.weight}) is a single number; name a weight matrix or a convolution"
        )
    stride = math.prod(shape[2:])
    columns = math.prod(shape[1:])
    return Carrier(role, shape[0], columns, stride, every_third_input, shape, name=found.weight, scale=found.scale)


def _refuse_shape(data: Mapping[str, Any]) -> None:
    shape = data["shape"]
    if (
        not isinstance(shape, list | tuple)
        or not 1 <= len(shape) <= 8
        or not all(type(size) is int and 1 <= size <= MAX_SIZE for size in shape)
        or shape[0] != data["rows"]
        or math.prod(shape[1:]) != data["columns"]
        or math.prod(shape[2:]) != data["stride"]
    ):
        raise InvalidInput(f"layout: `shape` {shape!r:.100} of a carrier does not fit its rows, columns and stride")


def _role_of(name: str, shapes: Mapping[str, Shape]) -> str:
    # A carrier named by its tensor gets its role, so that prefixes and ports of the same backbone still read.
    try:
        _, found = find_carriers(shapes)
    except InvalidInput:
        return name
    return {item.weight: role for role, item in found.items()}.get(name, name)
