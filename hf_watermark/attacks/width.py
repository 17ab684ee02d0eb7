"""
Attacks that change how many units a layer has: dummy ones are added (neural structural obfuscation: Yan et al., USENIX Security 2023,
https://huggingface.co/papers/2303.09732), or the weakest are taken out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedModel

from ..backbones.symmetry import Change, Factors, Moved, Symmetry, change_stored, fold
from .symmetric import SymmetricAttack, store, symmetry_for


@dataclass
class DummyNeurons(SymmetricAttack):
    """
    Widen every hidden layer by units that change no answer.

    Args:
        kind (`str`, *optional*, defaults to `"zero"`):
            `"zero"`: random units that nothing reads; `"clique"`: pairs of equal random units whose outgoing weights cancel; `"split"`: units
            that share the outgoing weights of one they copy.
        fraction (`float`, *optional*, defaults to 0.2):
            Units to add, as a share of the layer's.
        seed (`int`, *optional*, defaults to 0):
            Seed of the choice of units and their weights.
    """

    name: ClassVar[str] = "dummy_neurons"

    kind: Literal["zero", "clique", "split"] = "zero"
    fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        self._check(self.kind in ("zero", "clique", "split"), "kind", "choose 'zero', 'clique' or 'split'")
        self._check(0 < self.fraction <= 1, "fraction", "give a number above 0, up to 1")

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        symmetry, generator = symmetry_for(model, data), self.generator()
        change, added = Change(), {}
        for number in hidden_spaces(symmetry):
            added[number] = self._widen(symmetry, number, change, generator)
        self.refuse_empty(added, model, "hidden layer that can be widened")
        state = change_stored(change, symmetry, model.state_dict())
        if self.kind != "split":
            for number, count in added.items():
                self._randomise(symmetry, number, count, state, generator)
        return store(model, state)

    def _widen(self, symmetry: Symmetry, number: int, change: Change, generator: torch.Generator) -> int:
        size = symmetry.spaces[number].size
        count = max(1, round(self.fraction * size))
        if self.kind == "clique":
            count += count % 2
        chosen = torch.randperm(size, generator=generator)
        chosen = chosen.repeat(-(-count // size))[:count]
        shares = torch.ones(size + count)
        if self.kind == "zero":
            shares[size:] = 0
        elif self.kind == "clique":
            chosen = chosen[: count // 2].repeat_interleave(2)
            shares[size::2], shares[size + 1 :: 2] = 1, -1
        else:
            part = 0.2 + 0.6 * torch.rand(count, generator=generator)
            # A unit may be split more than once.
            for place, unit in enumerate(chosen.tolist()):
                shares[size + place] = shares[unit] * part[place]
                shares[unit] = shares[unit] * (1 - part[place])
        order = torch.cat([torch.arange(size), chosen])
        change.spaces[number] = Moved.permutation(order)
        for _name, axis in symmetry.touching(number):
            for segment in axis.segments:
                change.factors[segment.scale] = Factors(torch.ones(size + count), shares)
        return count

    def _randomise(
        self, symmetry: Symmetry, number: int, count: int, state: dict[str, torch.Tensor], generator: torch.Generator
    ) -> None:
        """New units get incoming weights of their own, drawn from their layer's; the two of a clique get the same."""
        for name, axis in symmetry.touching(number):
            if axis.flow == "out" and name in state and state[name].ndim > 1:
                rows = state[name].movedim(axis.axis, 0)
                flat = rows.reshape(len(rows), -1)
                step = 2 if self.kind == "clique" else 1
                picks = torch.randint(flat.numel(), (count // step, flat.shape[1]), generator=generator)
                fresh = flat.flatten()[picks].repeat_interleave(step, dim=0)
                rows[-count:] = fresh.reshape(count, *rows.shape[1:])


@dataclass
class StructuredPrune(SymmetricAttack):
    """
    Take whole units out of every hidden layer: those whose incoming weights, BatchNorm folded in, have the smallest norm. The coupled rows and
    columns come from the network's symmetry, which also knows attention and position tables; `torch-pruning`'s dependency graph finds the
    same groups (a test compares them), but its pruners cannot take apart the attention of `transformers`.

    Args:
        amount (`float`, *optional*, defaults to 0.2):
            Share of the units of each layer to remove.
    """

    name: ClassVar[str] = "structured_prune"

    amount: float = 0.2

    def __post_init__(self) -> None:
        self._check(0 < self.amount < 1, "amount", "give the fraction of units to remove, between 0 and 1")

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        symmetry = symmetry_for(model, data)
        folded = fold(symmetry, model.state_dict())
        change = Change()
        for number in hidden_spaces(symmetry):
            size = symmetry.spaces[number].size
            norms = torch.zeros(size)
            for name, axis in symmetry.touching(number):
                if axis.flow == "out" and name in folded:
                    norms += folded[name].movedim(axis.axis, 0).reshape(size, -1).square().sum(dim=1)
            kept = norms.argsort(descending=True)[: size - round(self.amount * size)].sort().values
            change.spaces[number] = Moved.permutation(kept)
        self.refuse_empty(change.spaces, model, "hidden layer that can be narrowed")
        return store(model, change_stored(change, symmetry, model.state_dict()))


def hidden_spaces(symmetry: Symmetry) -> Iterator[int]:
    """Spaces that may get more channels: no normalisation averages over them, and every axis in them holds nothing else."""
    normed = {
        segment.space
        for norm in symmetry.norms.values()
        for axis in symmetry.axes.get(norm.bias or "", [])
        for segment in axis.segments
    }
    for number, space in enumerate(symmetry.spaces):
        uses = [axis for _, axis in symmetry.touching(number)]
        read = any(axis.flow == "in" for axis in uses)
        if (
            space.kind == "permutation"
            and number not in normed
            and read
            and all(len(axis.segments) == 1 for axis in uses)
        ):
            yield number
