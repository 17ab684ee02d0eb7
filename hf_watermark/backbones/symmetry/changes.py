"""
Changes of coordinates, and what they do to every tensor.

A change of a space sends its n old channels to m new ones. Rows (what writes the channels) are multiplied by the left matrix `[m, n]`,
columns (what reads them) by the right one `[n, m]`. For a symmetry the second is the inverse of the first; an alignment that drops or
merges channels has two that are not square.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from .structure import Axis, Segment, Symmetry


Tensors = dict[str, torch.Tensor]


@dataclass
class Moved:
    """
    New channel j has the rows of old channel `order[j]` (-1: zero), and its columns are the sum of those of `source` where `target` is j.
    """

    order: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor

    @classmethod
    def permutation(cls, order: torch.Tensor) -> "Moved":
        return cls(order, order, torch.arange(len(order)))


@dataclass
class Factors:
    """Factors of one class: of every row `[m]`, and of every (source, target) pair of columns."""

    rows: torch.Tensor
    columns: torch.Tensor


@dataclass
class Mixed:
    """Dense matrices."""

    left: torch.Tensor
    right: torch.Tensor


@dataclass
class Change:
    """
    Attributes:
        spaces: What happens to each space; nothing where it is not listed.
        factors: Per class, where it is not one.
        sizes: Channels that a space has before the change, where it is not what the traced model has.
    """

    spaces: dict[int, Moved | Mixed] = field(default_factory=dict)
    factors: dict[int, Factors] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)

    def apply(self, symmetry: Symmetry, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """All tensors in the new coordinates."""
        return {name: self.apply_to(tensor, symmetry.axes.get(name, ())) for name, tensor in tensors.items()}

    def apply_to(
        self, tensor: torch.Tensor, axes: "tuple[Axis, ...] | list[Axis]", skip: int | None = None
    ) -> torch.Tensor:
        """One tensor; the axis `skip` stays as it is."""
        by_axis: dict[int, list[Axis]] = {}
        for axis in axes:
            if axis.axis != skip:
                by_axis.setdefault(axis.axis, []).append(axis)
        for items in by_axis.values():
            if len(items) == 2:  # one factor per channel, which both writes and reads
                tensor = self._one_by_one(tensor, *sorted(items, key=lambda item: item.flow == "in"))
            else:
                tensor = self._along(tensor, items[0])
        return tensor

    def size(self, segment: Segment) -> int:
        """Length of a segment before the change."""
        return self.sizes.get(segment.space, segment.size) * segment.repeat

    def _along(self, tensor: torch.Tensor, axis: Axis) -> torch.Tensor:
        if not any(segment.space in self.spaces or segment.scale in self.factors for segment in axis.segments):
            return tensor
        parts = tensor.split([self.size(segment) for segment in axis.segments], dim=axis.axis)
        changed = [self._part(part, axis, segment) for part, segment in zip(parts, axis.segments, strict=True)]
        return torch.cat(changed, dim=axis.axis) if len(changed) > 1 else changed[0]

    def _part(self, part: torch.Tensor, axis: Axis, segment: Segment) -> torch.Tensor:
        shape = list(part.shape)
        place = axis.axis
        part = part.reshape([*shape[:place], -1, segment.repeat, *shape[place + 1 :]]).movedim(place, 0)
        change, factors = self.spaces.get(segment.space), self.factors.get(segment.scale)
        if isinstance(change, Mixed):
            # Keys take the inverse transpose of the queries' matrix.
            left = change.right.mT if segment.dual else change.left
            matrix = left if axis.flow == "out" else change.right.mT
            part = (matrix.to(part) @ part.flatten(1)).reshape(-1, *part.shape[1:])
        elif axis.flow == "out":
            part = _scaled(part if change is None else _rows(part, change.order), factors.rows if factors else None)
        elif change is None:
            part = _scaled(part, factors.columns if factors else None)
        else:
            read = _scaled(part[change.source], factors.columns if factors else None)
            if len(change.target) == len(change.order) and torch.equal(
                change.target, torch.arange(len(change.target))
            ):
                part = read
            else:
                part = read.new_zeros(len(change.order), *read.shape[1:]).index_add(0, change.target, read)
        shape[place] = len(part) * segment.repeat
        return part.movedim(0, place).reshape(shape)

    def _one_by_one(self, tensor: torch.Tensor, out: Axis, read: Axis) -> torch.Tensor:
        return self.divide(self._along(tensor, out), read)

    def divide(self, tensor: torch.Tensor, read: Axis) -> torch.Tensor:
        """Divides out the factors of the class that a one-by-one tensor reads; its channels have changed places already."""
        known = [self.factors.get(segment.scale) for segment in read.segments]
        if not any(known):
            return tensor
        sizes = [segment.size * segment.repeat for segment in read.segments]
        parts = tensor.movedim(read.axis, 0).split(sizes if len(sizes) > 1 else len(tensor.movedim(read.axis, 0)))
        divided = [
            _scaled(
                part,
                None
                if factors is None
                else torch.where(factors.rows == 0, 0, 1 / factors.rows).repeat_interleave(segment.repeat),
            )
            for part, factors, segment in zip(parts, known, read.segments, strict=True)
        ]
        return torch.cat(divided).movedim(0, read.axis)


def _rows(part: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    rows = part[order.clamp_min(0)]
    return torch.where((order < 0).reshape(-1, *[1] * (rows.ndim - 1)), 0, rows) if (order < 0).any() else rows


def _scaled(part: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
    return part if factors is None else part * factors.to(part).reshape(-1, *[1] * (part.ndim - 1))


def raw_axes(symmetry: Symmetry) -> tuple[dict[str, list[Axis]], set[str]]:
    """
    Channels of the tensors as they are stored, with BatchNorm and LayerScale in place, and the names of those whose rows no factor may
    touch, because what follows them holds it.
    """
    axes = {name: list(items) for name, items in symmetry.axes.items()}
    plain: set[str] = set()

    def behind(layer: str) -> list[Axis]:
        return [axis for axis in symmetry.axes.get(layer, []) if axis.flow == "out"]

    for item in symmetry.net.folds:
        if item.layer is None:
            # Its mean has the factors of what it reads.
            read = [axis for axis in symmetry.axes.get(f"{item.norm}.weight", []) if axis.flow == "in"]
            for name in ("running_mean", "running_var"):
                axes[f"{item.norm}.{name}"] = [Axis(axis.axis, "out", axis.segments) for axis in read]
            plain.add(f"{item.norm}.running_var")
            continue
        statistics = [f"{item.norm}.running_mean", f"{item.norm}.running_var"]
        for name in (f"{item.norm}.weight", f"{item.norm}.bias", *statistics):
            axes[name] = behind(f"{item.layer}.weight")
        plain |= {f"{item.layer}.weight", f"{item.layer}.bias", *statistics}
    for scaler, writer in symmetry.scalers.items():
        shape = symmetry.shapes[scaler]
        wide = next((number for number, size in enumerate(shape) if size > 1), 0)
        axes[scaler] = [Axis(wide, "out", axis.segments) for axis in behind(writer)]
        plain |= {writer, symmetry.biases.get(writer, writer)}
    for norm in symmetry.norms.values():
        axes[norm.weight] = symmetry.norm_axes.get(norm.weight, [])
        plain.add(norm.weight)
    return axes, plain


def change_stored(change: Change, symmetry: Symmetry, state: Mapping[str, torch.Tensor]) -> Tensors:
    """A permuting or scaling change applied to tensors as they are stored: BatchNorm keeps its statistics."""
    axes, plain = raw_axes(symmetry)
    moves = Change(change.spaces, {}, change.sizes)
    result = {}
    for name, tensor in state.items():
        mine = axes.get(name, [])
        if name in plain:
            out = [axis for axis in mine if axis.flow == "out"]
            tensor = moves.apply_to(tensor, out)
            read = [axis for axis in mine if axis.flow == "in"]
            result[name] = _inputs(
                change, tensor, read, one_by_one=bool(out) and bool(read) and out[0].axis == read[0].axis
            )
        else:
            result[name] = change.apply_to(tensor, mine)
    return result


def _inputs(change: Change, tensor: torch.Tensor, read: list[Axis], one_by_one: bool) -> torch.Tensor:
    if not one_by_one:
        return change.apply_to(tensor, read)
    return change.divide(tensor, read[0])
