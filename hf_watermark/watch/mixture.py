"""
Of which known parents a model is the weighted average: weights with intervals, by least squares over the tensors that all of them have.

A merge writes `sum w_i parent_i`, and for task arithmetic `base + sum w_i (parent_i - base)`; with the base among the parents both are one affine
combination whose weights add up to one. Every tensor is an experiment of its own: the intervals come from leaving out one tensor after the other (jackknife,
Student's t), because the errors within one are anything but independent. It says how a merge could have been made; whose marks it carries, the
watch says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..serialization import InvalidInput


# Tensors are read one at a time, and of each at most so many numbers, evenly spread.
MOST_NUMBERS = 2**18
LEAST_TENSORS = 8


@dataclass(frozen=True)
class Mixture:
    """
    Weights of the parents in a merge.

    Args:
        weights (`dict[str, float]`):
            By parent; they add up to one.
        intervals (`dict[str, tuple[float, float]]`):
            95 % each, of the jackknife over tensors.
        explained (`float`):
            Share of the variance around the mean of the parents that the combination explains, at most 1. Near 1 for a merge, and not for
            anything that was trained afterwards or is no merge of these.
        tensors, numbers (`int`):
            What was compared.
    """

    weights: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    explained: float
    tensors: int
    numbers: int

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"intervals": {name: list(ends) for name, ends in self.intervals.items()}}


def mixture_of(suspect: Mapping[str, torch.Tensor], parents: Mapping[str, Mapping[str, torch.Tensor]]) -> Mixture:
    """
    Args:
        suspect (`Mapping[str, torch.Tensor]`):
            Tensors by name: of a folder, a repository, or a live model.
        parents (`Mapping[str, Mapping[str, torch.Tensor]]`):
            At least two models of the same names and shapes, by the name that they are to have.

    Raises:
        [`~serialization.InvalidInput`]: for fewer than two parents, parents that cannot be told apart, or too few tensors in common.

    Example:

    ```python
    from hf_watermark import Suspect
    from hf_watermark.watch.mixture import mixture_of

    parents = {name: Suspect.open(name).weights for name in ("me/base", "me/tuned", "you/tuned")}
    print(mixture_of(Suspect.open("somebody/merge").weights, parents).weights)
    ```
    """
    names = list(parents)
    if len(names) < 2:
        raise InvalidInput(f"`parents` has {len(names)} models: give at least the two that were merged")
    grams, sides, totals, numbers = [], [], [], 0
    first = parents[names[0]]
    for name in first:
        rows = _rows(name, suspect, [parents[parent] for parent in names])
        if rows is None:
            continue
        target, given = rows
        # Relative to the last parent: then the weights of the others are free, and all add up to one.
        columns, wanted = given[:-1] - given[-1], target - given[-1]
        grams.append(columns @ columns.T)
        sides.append(columns @ wanted)
        mean = given.mean(axis=0)
        totals.append((float(((target - mean) ** 2).sum()), float(wanted @ wanted)))
        numbers += target.size
    if len(grams) < LEAST_TENSORS:
        raise InvalidInput(
            f"the models have {len(grams)} tensors of one name and shape in common: at least {LEAST_TENSORS} are needed"
        )
    gram, side = np.array(grams), np.array(sides)
    weights = _solved(gram.sum(axis=0), side.sum(axis=0), names)
    free = weights[:-1]
    residual = sum(total for _, total in totals) - 2 * free @ side.sum(axis=0) + free @ gram.sum(axis=0) @ free
    around = sum(total for total, _ in totals)
    from scipy import stats  # takes long to import

    without = np.array(
        [
            _solved(gram.sum(axis=0) - own, side.sum(axis=0) - theirs, names)
            for own, theirs in zip(gram, side, strict=True)
        ]
    )
    count = len(gram)
    errors = np.sqrt((count - 1) / count * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    reach = float(stats.t.ppf(0.975, count - 1)) * errors
    return Mixture(
        dict(zip(names, map(float, weights), strict=True)),
        {name: (float(w - r), float(w + r)) for name, w, r in zip(names, weights, reach, strict=True)},
        float(1 - residual / around) if around else 1.0,
        len(grams),
        numbers,
    )


def _rows(
    name: str, suspect: Mapping[str, torch.Tensor], parents: Sequence[Mapping[str, torch.Tensor]]
) -> tuple[np.ndarray, np.ndarray] | None:
    """One tensor of all models as `[n]` and `[parents, n]`; `None` where one lacks it or has another shape, and for what is no weight."""
    if name not in suspect or any(name not in parent for parent in parents):
        return None
    tensors = [suspect[name], *(parent[name] for parent in parents)]
    if (
        len({tuple(tensor.shape) for tensor in tensors}) > 1
        or tensors[0].ndim < 2
        or not tensors[0].is_floating_point()
    ):
        return None
    step = -(-tensors[0].numel() // MOST_NUMBERS)
    stacked = torch.stack([tensor.detach().cpu().double().flatten()[::step] for tensor in tensors]).numpy()
    return (stacked[0], stacked[1:]) if np.isfinite(stacked).all() else None


def _solved(gram: np.ndarray, side: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The weights, the last one so that all add up to one."""
    if np.linalg.cond(gram) > 1e10:
        raise InvalidInput(
            f"parents {', '.join(names)} cannot be told apart: two of them are the same model, or mixtures of the others"
        )
    free = np.linalg.solve(gram, side)
    return np.append(free, 1 - free.sum())
