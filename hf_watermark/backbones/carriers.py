"""Carriers of one backbone: a public layout fixed once, and canonical rows read by it from any suspect."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..serialization import InvalidInput, Unreadable
from .families import Found, Shape, find_carriers, find_stem
from .loading import full_parameter


STEM = "stem"
MAX_SIZE = 2**24
MAX_CARRIERS = 4096


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
    """

    role: str
    rows: int
    columns: int
    stride: int = 1
    every_third_input: bool = False

    @property
    def eligible(self) -> int:
        """Number of columns that may carry."""
        inputs = self.columns // self.stride
        return (inputs // 3 if self.every_third_input else inputs) * self.stride

    def to_dict(self) -> dict:
        return {
            "role": self.role,
            "rows": self.rows,
            "columns": self.columns,
            "stride": self.stride,
            "every_third_input": self.every_third_input,
        }

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
        if type(data["role"]) is not str or type(data["every_third_input"]) is not bool:
            raise InvalidInput("layout: `role` of a carrier must be text and `every_third_input` true or false")
        return cls(**data)

    def select(self, matrix: torch.Tensor) -> torch.Tensor:
        """Keeps the eligible columns of `[rows, columns]`, giving `[rows, eligible]`."""
        if not self.every_third_input:
            return matrix
        inputs = matrix.reshape(len(matrix), -1, self.stride)
        return inputs[:, 2::3][:, : inputs.shape[1] // 3].flatten(1)


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
        return [_carrier(role, shapes[item.weight], family.every_third_input) for role, item in found.items()]
    roles = [_role_of(name, shapes) for name in chosen]
    return [_carrier(role, shapes[locate(role, shapes).weight], role.startswith("vgg.")) for role in roles]


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
        known = ", ".join([*found, STEM]) if found else "none, this is no known backbone family"
        raise LayoutMismatch(f"layer {role!r} does not exist in this model; its carrier roles are: {known}")
    return found[role]


def canonical_rows(carrier: Carrier, weights: Mapping[str, torch.Tensor], shapes: Mapping[str, Shape]) -> torch.Tensor:
    """
    Canonical eligible weights of one carrier, `[rows, eligible]`, float32.

    A row is divided by its root mean square and multiplied by the sign of the BatchNorm weight or LayerScale that follows. This is
    the folded weight up to a positive factor per row, so row scaling and sign flips across BatchNorm, which cost a thief
    nothing, leave it unchanged. A dead row (zero scale or zero weights) is all zero. Differentiable in the weights, with the
    row's scale held constant.

    Raises:
        [`LayoutMismatch`]: when the suspect lacks the tensor or it has another shape.
    """
    found = located(carrier, shapes)
    # A model of one's own may be spread over processes.
    scale = None if found.scale is None else full_parameter(weights[found.scale])
    return canonical_form(carrier, full_parameter(weights[found.weight]), scale)


def located(carrier: Carrier, shapes: Mapping[str, Shape]) -> Found:
    """
    Where a carrier lies in a suspect.

    Raises:
        [`LayoutMismatch`]: when the suspect lacks the tensor or it has another shape.
    """
    found = locate(carrier.role, shapes)
    shape = shapes[found.weight]
    matrix = shape[0] if shape else 1, math.prod(shape[1:])
    if matrix != (carrier.rows, carrier.columns):
        raise LayoutMismatch(
            f"layer {carrier.role!r} ({found.weight}) has {matrix} weights, the key was made for "
            f"{(carrier.rows, carrier.columns)}: the suspect has another architecture or lost channels"
        )
    if found.scale is not None and tuple(shapes[found.scale]) != (carrier.rows,):
        raise LayoutMismatch(f"{found.scale} has shape {shapes[found.scale]}, its layer has {carrier.rows} rows")
    return found


def canonical_form(carrier: Carrier, weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """[`canonical_rows`] of some or all rows of one carrier: `weight` as stored, and the vector behind these rows."""
    rows = carrier.select(weight.float().reshape(-1, carrier.columns))
    size = rows.detach().square().mean(dim=1, keepdim=True).sqrt()
    rows = torch.where(size > 0, rows / size, torch.zeros_like(rows))
    if scale is not None:
        rows = rows * scale.detach().float().sign()[:, None]
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


def _carrier(role: str, shape: Shape, every_third_input: bool) -> Carrier:
    stride = shape[2] * shape[3] if len(shape) == 4 else 1
    return Carrier(role, shape[0], shape[1] * stride, stride, every_third_input)


def _role_of(name: str, shapes: Mapping[str, Shape]) -> str:
    # A carrier named by its tensor gets its role, so that prefixes and ports of the same backbone still read.
    try:
        _, found = find_carriers(shapes)
    except InvalidInput:
        return name
    return {item.weight: role for role, item in found.items()}.get(name, name)
