"""Embeds greedy residuals while training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ...backbones import (
    Carrier,
    LayoutMismatch,
    canonical_rows,
    changes,
    describe_changes,
    full_parameter,
    is_sharded,
    layout_of,
    level,
    live_weights,
    located,
    read_carriers,
    refuse_other_shapes,
    witnessed,
)
from ...keys import Claim
from ...serialization import InvalidInput
from ...training.course import Course, Forecast
from ...training.embedding import Embedding, Plan, Step, TrainingData
from .config import GreedyResidualsConfig
from .projection import project
from .residuals import (
    bearable_bits,
    fitting_subkeys,
    hinge,
    kept_count,
    largest_magnitudes,
    paper_residuals,
    place_groups,
    read_residuals,
    refuse_small,
    signs,
)
from .verifier import GreedyResidualsVerifier


Holder = Callable[[], torch.Tensor]
OTHER = "the key was made for another backbone or adapter: the weights that it marks have other shapes here; make a fresh key"
# Measured on digits: residuals move up to so much farther than with a fixed selection of weights.
SELECTION = 1.25


class GreedyResidualsEmbedding(Embedding):
    """
    Puts the key's bits s_i = +-1 into the signs of greedy residuals of key-drawn weight groups; see [`GreedyResidualsConfig`]. The task loss gets

        strength * sum_i max(0, margin - s_i phi_i),   phi_i = sum of the kept weights of group i / (group_size * r)

    where r is the root mean square of the group's row.
    """

    verifier_class = GreedyResidualsVerifier
    writable = True
    streams = True
    marks_changes = True

    config: GreedyResidualsConfig

    @classmethod
    def plan(cls, model: nn.Module, data: TrainingData, config: GreedyResidualsConfig, secret: bytes) -> Plan:
        made = changes(model)
        if made and config.preset == "paper":
            raise InvalidInput(
                "preset 'paper' marks the first convolution as it is saved, which an adapter does not change; use the default preset"
            )
        if made and config.written_first:
            raise InvalidInput(
                "`written_first` writes into weights, and a mark in an adapter has to be trained; leave it out"
            )
        carriers = describe_changes(model, config.layers) if made else layout_of(model, config.layers)
        most = bearable_bits(carriers, {name: change.rank for name, change in made.items()}) if made else None
        subkeys = 1 if config.preset == "paper" else config.subkeys or fitting_subkeys(carriers, config, most)
        refuse_small(config, carriers, subkeys)
        if most is not None and subkeys * config.bits > most:
            raise InvalidInput(
                f"{subkeys} sub-key(s) x {config.bits} bits do not fit: changes of these ranks bear about {most} bits in all; lower `bits` or `subkeys`, "
                "or raise `r` or the number of `target_modules` of the adapter"
            )
        if not made:
            carriers = witnessed(carriers, live_weights(model))
        layout: dict[str, Any] = {"carriers": [carrier.to_dict() for carrier in carriers]}
        return Plan(layout | ({"adapter": True} if made else {}), subkeys)

    def __init__(self, model: nn.Module, claim: Claim, data: TrainingData = TrainingData()):
        super().__init__(model, claim, data)
        config = self.config
        self._carriers = read_carriers(claim.assignment.layout)
        self._changes = changes(model)
        adapted = bool(claim.assignment.layout.get("adapter"))
        shapes = {name: tuple(weight.shape) for name, weight in live_weights(model).items()}
        if adapted:
            known = {carrier.role: carrier for carrier in describe_changes(model)}
            if [known.get(carrier.role) for carrier in self._carriers] != self._carriers:
                raise LayoutMismatch(OTHER)
        elif self._changes:
            raise LayoutMismatch(OTHER)
        else:
            refuse_other_shapes(self._carriers, shapes)
        self._subkeys = claim.subkeys
        self._begun = False
        message = torch.cat([signs(subkey, config.bits) for subkey in claim.subkeys])
        if config.preset == "paper":
            self._signs = message
            return
        self._groups = [
            place_groups(subkey, self._carriers, config.bits, config.group_size, len(claim.assignment.subkeys))
            for subkey in claim.subkeys
        ]
        owner = torch.cat([groups.carrier for groups in self._groups])
        row = torch.cat([groups.row for groups in self._groups])
        columns = torch.cat([groups.columns for groups in self._groups])
        self._marked, factors = [], []
        for number in owner.unique().tolist():
            carrier, mine = self._carriers[number], (owner == number).nonzero()[:, 0]
            mine = mine[row[mine].argsort()]  # read row by row, as the weights lie in memory
            raw_column = carrier.select(torch.arange(carrier.columns)[None])[0]
            if adapted:
                change = self._changes[carrier.name]
                held = MarkedTensor(carrier, change, None, row[mine], raw_column[columns[mine]], change.base)
            else:
                found = located(carrier, shapes)
                scale = None if found.scale is None else _holder(model, found.scale)
                held = MarkedTensor(carrier, _holder(model, found.weight), scale, row[mine], raw_column[columns[mine]])
            self._marked.append(held)
            # phi is a sum over sqrt(row's length) / (group size * row's norm); all of this that never changes
            factors.append(message[mine] * carrier.eligible**0.5 / config.group_size)
        self._factors = torch.cat(factors)

    def required_calls(self) -> set[str]:
        return super().required_calls() - (set() if self.config.written_first else {"around_step"})

    def around_step(self, step: Step) -> torch.Tensor:
        if self._writes():
            self.write()
        self._begun = True
        return step()

    def _writes(self) -> bool:
        """Whether the first step writes the mark, before it trains."""
        return self.config.written_first and self.moment.step == 0 and not self._begun and not is_sharded(self.model)

    def residuals(self) -> torch.Tensor:
        """Residuals of all sub-keys of the live model, `[sub-keys x bits]`. Differentiable."""
        config = self.config
        weights = {name: change() for name, change in self._changes.items()} or live_weights(self.model)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        if config.preset == "paper":
            stem = weights[located(self._carriers[0], shapes).weight]
            return paper_residuals(stem, self._subkeys[0], config.kept_fraction)
        rows = {carrier.role: canonical_rows(carrier, weights, shapes) for carrier in self._carriers}
        return torch.cat([read_residuals(rows, groups, config.kept_fraction) for groups in self._groups])

    def penalty(self) -> torch.Tensor:
        """The weighted sum of the hinges, a scalar."""
        config = self.config
        if config.preset == "paper":
            phi = self.residuals()
            total = hinge(phi, self._signs.to(phi.device), config.margin)
        else:
            weights = [item.weight() for item in self._marked]
            self._factors = self._factors.to(weights[0].device)
            total = FusedHinge.apply(self._marked, self._factors, config.margin, config.kept_fraction, *weights)
        return config.strength * total

    @torch.no_grad()
    def forecast(self, course: Course) -> Forecast | None:
        """
        Bits that are right or can become so. When each of a group's k kept weights moves by `reach`, its residual moves by
        k reach / (group size * r), and a little more because others are kept then; a bit can turn where this is more than what its residual
        lacks to zero.
        """
        config, marked = self.config, self._marked if self.config.preset == "default" else []
        if not marked or self._changes or self._writes():
            return None
        slopes, lacking = [], []
        for item, factors in zip(marked, self._factors.split([len(item.rows) for item in marked]), strict=True):
            weight = item.weight()
            slope = (factors.to(weight.device) / item.norms(weight)).nan_to_num(posinf=0.0, neginf=0.0)
            values = item.values(weight)
            kept = largest_magnitudes(values, config.kept_fraction)
            slopes.append(slope.abs().cpu())
            lacking.append(-(slope * values.gather(1, kept).sum(dim=1)).cpu())
        slope, count = torch.cat(slopes), kept_count(config.group_size, config.kept_fraction)
        gradient = config.strength * slope
        norm = float((gradient.square().sum() * count).sqrt())
        reach = course.reach(gradient, norm)
        right = int((SELECTION * count * slope * reach > torch.cat(lacking)).sum())
        return Forecast.of_bits(right, len(slope), self.claim)

    @torch.no_grad()
    def write(self, only: str | None = None) -> dict[str, torch.Tensor]:
        config = self.config
        if config.preset == "paper":
            raise InvalidInput("preset 'paper' cannot be written without training; use the default preset")
        if self._changes:
            raise InvalidInput(
                "a mark in an adapter has to be trained; merge the adapter to write one into the weights"
            )
        held = {}
        for item, factors in zip(
            self._marked, self._factors.split([len(item.rows) for item in self._marked]), strict=True
        ):
            if only not in (None, item.carrier.name):
                continue
            weight = item.weight()
            row = item.rows.to(weight.device)[:, None]
            mask = torch.zeros(len(weight), item.carrier.columns, dtype=torch.bool, device=weight.device)
            mask[row, item.columns] = True
            matrix = _centred(item.carrier, weight).clone()
            # The sign that the bit asks of the stored weights, in units of their row; a dead row holds nothing.
            unit = (factors.sign().to(matrix.device) * item.norms(weight) / item.carrier.eligible**0.5)[:, None]
            values = torch.where(unit == 0, 0, matrix[row, item.columns] / unit)
            moved = project(values, config.margin, config.kept_fraction)
            matrix[row, item.columns] = torch.where(unit == 0, matrix[row, item.columns], moved * unit)
            # A centred row takes the mean of what is written out of its other weights.
            matrix = level(matrix, mask) if item.carrier.centred else matrix
            weight.copy_(matrix.reshape(weight.shape))
            held[item.carrier.name] = mask
        return held


@dataclass
class MarkedTensor:
    """
    One carrier of the live model and the groups of all sub-keys in it.

    Args:
        weight, scale (`Callable`):
            Give the tensors that are there now, because FSDP2 and memory formats put others there after the trainer was made.
        rows, columns (`torch.Tensor`):
            `[groups]` and `[groups, group size]`: places in the raw weight `[rows, columns]`.
        unit (`Callable`, *optional*):
            Gives the weight whose rows set the unit, where it is not this one: an adapter's change begins at zero.
    """

    carrier: Carrier
    weight: Holder
    scale: Holder | None
    rows: torch.Tensor
    columns: torch.Tensor
    unit: Holder | None = None
    _known: dict[Any, torch.Tensor] = field(default_factory=dict, repr=False)

    def places(self, weight: torch.Tensor) -> torch.Tensor:
        """Where the groups lie in the memory of `weight`, whatever its memory format: `[groups, group size]`."""
        layout = weight.device, weight.stride()
        if layout not in self._known:
            places = torch.unravel_index(self.columns, weight.shape[1:])
            inner = sum(place * stride for place, stride in zip(places, weight.stride()[1:], strict=True))
            self._known = {layout: (self.rows[:, None] * weight.stride(0) + inner).to(weight.device)}
            self.rows = self.rows.to(weight.device)
        return self._known[layout]

    def values(self, weight: torch.Tensor) -> torch.Tensor:
        """The weights of the groups as stored, but for the mean of a centred row: `[groups, group size]`, float32."""
        values = _memory(weight).index_select(0, self.places(weight).flatten()).reshape(len(self.rows), -1).float()
        centre = self.carrier.centre(weight)
        return values if centre is None else values - centre[self.rows].float()

    def norms(self, weight: torch.Tensor) -> torch.Tensor:
        """Of each group's row over its eligible columns, with the sign of the scale behind it: `[groups]`, and 0 for a dead row."""
        weight = weight if self.unit is None else self.unit()
        if self.carrier.centred:
            weight = _centred(self.carrier, weight).reshape(weight.shape)
        eligible = weight[:, 2::3][:, : weight.shape[1] // 3] if self.carrier.every_third_input else weight
        norm = torch.linalg.vector_norm(eligible, dim=tuple(range(1, weight.ndim)), dtype=torch.float32)
        if self.scale is not None:
            norm = norm * self.scale().float().flatten().sign()
        return norm[self.rows]


class FusedHinge(torch.autograd.Function):
    """
    `hinge(read_residuals(canonical_rows(...)))` over all sub-keys, with its gradient in closed form.

    phi is linear in the k selected weights w_j of a group, phi = sum_j w_j / (G r), where the row's r (root mean square, signed
    by the scale behind it) counts as constant, and so does the mean of a centred row. So the gradient is -s / (G r) at the selected weights of groups with s phi < mu, and
    only those weights are read and written: the chain of differentiable operations would walk through every carrier six times.
    """

    @staticmethod
    def forward(
        ctx: Any,
        marked: list[MarkedTensor],
        factors: torch.Tensor,
        margin: float,
        kept_fraction: float,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        norms, read = [], []
        for item, weight in zip(marked, weights, strict=True):
            # One tensor after the other: the norm has just brought it into the cache when its groups are picked out.
            norms.append(item.norms(weight))
            read.append(item.values(weight))
        norm, values = torch.cat(norms), torch.cat(read)
        slope = torch.where(norm == 0, 0.0, factors / norm)
        kept = largest_magnitudes(values, kept_fraction)
        short = margin - slope * values.gather(1, kept).sum(dim=1)
        ctx.weights, ctx.places = weights, [item.places(weight) for item, weight in zip(marked, weights, strict=True)]
        ctx.kept, ctx.slope = kept, torch.where(short > 0, -slope, 0.0)
        return short.clamp(min=0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple:
        slope = (ctx.slope * upstream)[:, None].expand_as(ctx.kept)
        grads, first = [], 0
        for weight, place in zip(ctx.weights, ctx.places, strict=True):
            mine = slice(first, first + len(place))
            grad = torch.zeros_like(weight)
            # Groups are disjoint, so nothing has to be added up.
            chosen = place.gather(1, ctx.kept[mine]).flatten()
            _memory(grad).index_copy_(0, chosen, slope[mine].flatten().to(grad.dtype))
            grads.append(grad)
            first += len(place)
        return None, None, None, None, *grads


def _holder(model: nn.Module, name: str) -> Holder:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    return lambda: full_parameter(module.get_parameter(leaf))


def _centred(carrier: Carrier, weight: torch.Tensor) -> torch.Tensor:
    """`[rows, columns]`, float32, without the means of centred rows."""
    rows, centre = weight.detach().flatten(1).float(), carrier.centre(weight)
    return rows if centre is None else rows - centre.float()


def _memory(tensor: torch.Tensor) -> torch.Tensor:
    """All elements in memory order, without a copy."""
    return tensor.as_strided((tensor.numel(),), (1,))
