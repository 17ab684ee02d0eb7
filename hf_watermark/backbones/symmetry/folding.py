"""
Folded coordinates of a whole network: BatchNorm goes into the layer before it, LayerScale too, and the slopes of a layer normalisation
into the layers that read it (its shift as well, where all of them have a bias). Rows that the network normalises are normalised. Two networks that differ only in where such a factor
is written have the same folded tensors.
"""

from collections.abc import Mapping

import torch

from ..treatment import Treatment
from .structure import Symmetry


Tensors = dict[str, torch.Tensor]
HUGE = 1e30
TINY = 1e-30


@torch.no_grad()
def fold(symmetry: Symmetry, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """
    Args:
        tensors (`Mapping[str, torch.Tensor]`):
            State dict of the traced model, or of one with other channel counts. A missing BatchNorm or LayerScale counts as the identity.

    Returns:
        Folded tensors (float32) by parameter name.
    """
    # What float32 cannot hold stands behind a dead channel.
    given = {
        name: tensor.detach().float().nan_to_num(0, HUGE, -HUGE)
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    buffers = {}
    for item in symmetry.net.folds:
        size = _size_behind(item.layer, item.norm, given)
        usual = {"running_mean": torch.zeros(size), "running_var": torch.full((size,), 1 - item.eps)}
        for name, value in usual.items():
            buffers[f"{item.norm}.{name}"] = given.pop(f"{item.norm}.{name}", value)
    # A layer that is not there stays away.
    lost = {item.layer for item in symmetry.net.folds if item.layer and f"{item.layer}.weight" not in given}
    given |= {f"{layer}.weight": torch.zeros(1, 1) for layer in lost}
    folded = symmetry.net.fold(given, buffers)
    for layer in lost:
        del folded[f"{layer}.weight"], folded[f"{layer}.bias"]
    for scaler, writer in symmetry.scalers.items():
        slope = folded.get(scaler)
        if slope is None:
            continue
        for name in filter(None, (writer, symmetry.biases.get(writer))):
            if name in folded:
                folded[name] = folded[name] * slope.reshape(-1, *[1] * (folded[name].ndim - 1))
        folded[scaler] = torch.ones_like(slope)
    for norm in symmetry.norms.values():
        if norm.weight in folded:
            _fold_norm(symmetry, norm.weight, norm.bias, norm.readers, folded)
    for name, how in symmetry.treated.items():
        if name in folded:
            _normalise(name, how, folded)
    return folded


def _normalise(name: str, how: Treatment, folded: Tensors) -> None:
    """Rows of unit size, without their mean where it means nothing, and in front of a scale without signs."""
    rows = folded[name].flatten(1).double()
    if how.centred:
        rows = rows - rows.mean(dim=1, keepdim=True)
    rows = rows / rows.square().mean(dim=1, keepdim=True).sqrt().clamp_min(TINY)
    scale = folded.get(how.scale or "")
    if scale is not None and scale.numel() == len(rows):
        rows = rows * torch.where(scale < 0, -1, 1).reshape(-1, 1)
        folded[how.scale or ""] = scale.abs()
    folded[name] = rows.reshape(folded[name].shape).float()


def _size_behind(layer: str | None, norm: str, given: Tensors) -> int:
    for name in (f"{norm}.weight", f"{norm}.running_mean", f"{layer}.weight"):
        if name in given:
            return len(given[name])
    return 0


def _fold_norm(symmetry: Symmetry, weight: str, bias: str | None, readers: list[str], folded: Tensors) -> None:
    slope = folded[weight]
    shift = folded.get(bias) if bias else None
    readers = [reader for reader in readers if reader in folded]
    into_biases = shift is not None and all(symmetry.biases.get(reader) in folded for reader in readers)
    for reader in readers:
        matrix = folded[reader]
        if into_biases and shift is not None:
            name = symmetry.biases[reader]
            folded[name] = (
                folded[name] + matrix.flatten(2).sum(2) @ shift if matrix.ndim > 2 else folded[name] + matrix @ shift
            )
        folded[reader] = matrix * slope.reshape(1, -1, *[1] * (matrix.ndim - 2))
    folded[weight] = torch.ones_like(slope)
    if shift is not None and bias is not None:
        # Readers without a bias: the shift stays with the norm, in front of the slope.
        folded[bias] = torch.zeros_like(shift) if into_biases else shift / torch.where(slope == 0, 1, slope)


@torch.no_grad()
def unfold(symmetry: Symmetry, folded: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> Tensors:
    """
    A state dict of the traced architecture with these folded tensors: every BatchNorm is neutral but for its shift. What is not there, or
    has another shape, is zero: nothing but names, shapes and integer buffers is ever taken from `like`.

    Args:
        like (`Mapping[str, torch.Tensor]`):
            State dict of the traced model.
    """
    result = dict(folded)
    for item in symmetry.net.folds:
        norm = item.norm
        size = len(like[f"{norm}.running_mean"])
        if item.layer is not None:
            shift = result.pop(f"{item.layer}.bias", torch.zeros(size))
            result[f"{item.layer}.bias"] = torch.zeros(size)
            result[f"{norm}.weight"], result[f"{norm}.bias"] = torch.ones(size), shift
        result[f"{norm}.running_mean"] = torch.zeros(size)
        result[f"{norm}.running_var"] = torch.full((size,), 1 - item.eps)
    state = {}
    for name, tensor in like.items():
        if not tensor.is_floating_point():
            state[name] = tensor
            continue
        found = result.get(name)
        state[name] = found if found is not None and found.shape == tensor.shape else torch.zeros_like(tensor)
    return state
