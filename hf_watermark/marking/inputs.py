"""What the rows of a layer are multiplied with: mean and covariance of its inputs, taken from pictures that run through the net."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ..backbones import evaluation_mode


SAMPLES = 4096
# Multiplications for one covariance matrix; wide layers get fewer samples.
MOST_WORK = 3e10
# Of the samples of all layers together, in float32.
MOST_BYTES = 192 * 2**20
BATCH = 16


@dataclass(frozen=True)
class Inputs:
    """
    Inputs of one weight `[rows, columns]`. A grouped convolution has `groups` sorts of them, of which each row sees one.

    Args:
        mean (`torch.Tensor`):
            `[groups, columns]`.
        samples (`torch.Tensor`):
            `[groups, n, columns]` without their mean, divided by the square root of n and of the mean variance: their Gram matrix is the
            covariance with a mean of 1 on its diagonal.
    """

    mean: torch.Tensor
    samples: torch.Tensor

    @classmethod
    def of(cls, seen: torch.Tensor) -> "Inputs":
        """Of samples `[groups, n, columns]`."""
        mean = seen.mean(dim=1, keepdim=True)
        centred = (seen - mean) / len(seen[0]) ** 0.5
        return cls(mean[:, 0], centred / centred.square().sum(dim=1).mean().sqrt().clamp_min(1e-12))


def layer_inputs(model: nn.Module, weights: Iterable[str], images: torch.Tensor, synthetic: bool) -> dict[str, Inputs]:
    """
    Inputs of the linear layers and convolutions that hold these weights, by the name of the weight. Other layers are left out.

    Args:
        images (`torch.Tensor`):
            `[n, channels, height, width]` in the model's input space.
        synthetic (`bool`):
            BatchNorms normalise by the batch, because the pictures are none of those that the net was trained on.
    """
    found = {name: model.get_submodule(name.rpartition(".")[0]) for name in weights if name.endswith(".weight")}
    layers = {name: layer for name, layer in found.items() if isinstance(layer, nn.Linear | nn.Conv2d)}
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    batches = images.split(BATCH)
    # Of a grouped convolution each group has inputs of its own.
    widths = [layer.weight[0].numel() * getattr(layer, "groups", 1) for layer in layers.values()]
    share = MOST_BYTES / 4 / max(sum(widths), 1)

    def remember(name: str) -> Any:
        def hook(layer: Any, args: tuple) -> None:
            columns = layer.weight[0].numel()
            most = int(min(SAMPLES, max(share, 16), max(MOST_WORK / columns**2, 64)))
            seen[name].append(_rows_of(layer, args[0].detach(), -(-most // len(batches))))

        return hook

    hooks = [layer.register_forward_pre_hook(remember(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad(), evaluation_mode(model), batch_statistics(model, synthetic):
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    # One after the other: the samples of a large net are not held twice.
    return {name: Inputs.of(torch.cat(seen.pop(name), dim=1)) for name in list(seen) if seen[name]}


def _rows_of(layer: Any, given: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many of the vectors that each row of the layer is multiplied with, `[groups, n, columns]`, float32."""
    if isinstance(layer, nn.Linear):
        vectors = given.reshape(-1, given.shape[-1])
        return _some(vectors, most).float()[None]
    vectors = _patches(layer, given, most).float()
    return vectors.reshape(len(vectors), layer.groups, -1).transpose(0, 1)


def _some(vectors: torch.Tensor, most: int) -> torch.Tensor:
    return vectors[_places(len(vectors), most).to(vectors.device)]


def _places(count: int, most: int) -> torch.Tensor:
    # Any places: a fixed step would meet the same columns of every image.
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]


def _patches(layer: nn.Conv2d, given: torch.Tensor, most: int) -> torch.Tensor:
    """What the kernel is laid on at some places of some images, `[n, channels * height * width]`; of large images all patches would be too many."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    given = given if given.ndim == 4 else given[None]  # one image without a batch
    padded = functional.pad(given, layer._reversed_padding_repeated_twice, mode)
    (high, wide), (down, right), steps = layer.kernel_size, layer.dilation, layer.stride
    rows = (padded.shape[-2] - down * (high - 1) - 1) // steps[0] + 1
    columns = (padded.shape[-1] - right * (wide - 1) - 1) // steps[1] + 1
    places = _places(len(given) * rows * columns, most).to(given.device)
    image, row, column = places // (rows * columns), places // columns % rows, places % columns
    down_to = row[:, None] * steps[0] + torch.arange(high, device=given.device) * down
    right_to = column[:, None] * steps[1] + torch.arange(wide, device=given.device) * right
    # Indices on both sides of the channels: these come last.
    patches = padded[image[:, None, None], :, down_to[:, :, None], right_to[:, None, :]]
    return patches.permute(0, 3, 1, 2).flatten(1)


@contextmanager
def batch_statistics(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Every BatchNorm normalises by the batch and keeps its running statistics; everything else stays in evaluation."""
    norms = (
        [item for item in model.modules() if isinstance(item, _BatchNorm) and item.track_running_stats]
        if wanted
        else []
    )
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm in norms:
            norm.training, norm.track_running_stats = False, True
