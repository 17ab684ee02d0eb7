"""Canonical rows of a carrier from the tensors of a model or suspect, however these are stored."""

from collections.abc import Mapping

import torch

from .carriers import Carrier, canonical_form
from .families import Found, Shape
from .formats import read_float
from .placing import located


def canonical_rows(
    carrier: Carrier, weights: Mapping[str, torch.Tensor], shapes: Mapping[str, Shape], found: Found | None = None
) -> torch.Tensor:
    """
    [`canonical_form`] of all rows of one carrier, `[rows, eligible]`, float32. Differentiable in the weights.

    Args:
        found ([`Found`], *optional*):
            Where it lies, if that is known already (see [`find_places`]).

    Raises:
        [`LayoutMismatch`]: when the suspect lacks the tensor or it has another shape.
        [`~serialization.UnreadableFormat`]: when its numbers cannot be told from what is stored.
    """
    found = found or located(carrier, shapes)
    if found.lost:
        return torch.zeros(carrier.rows, carrier.eligible)
    scale = None if found.scale is None else read_float(weights, found.scale)
    return canonical_form(carrier, read_weight(weights, found), scale)


def read_weight(weights: Mapping[str, torch.Tensor], found: Found) -> torch.Tensor:
    """The weight of one carrier as numbers, `[out, in, height, width]` or `[out, in]`."""
    parts = [read_float(weights, name) for name in (found.weight, *found.more)]
    weight = parts[0] if len(parts) == 1 else torch.cat(parts)
    if found.of > 1:
        weight = weight.chunk(found.of)[found.part]
    if found.middle:
        weight = weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2]
    if found.hollow:
        weight = weight.clone()
        weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] = 0
    if found.view is not None:
        weight = weight.reshape(found.view)
    return weight if found.axes is None else weight.permute(found.axes)
