"""Takes out what a mark moves the means of later outputs by, layer after layer as the images pass."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..backbones import evaluation_mode
from .inputs import batch_statistics


def match_means(
    source: nn.Module, marked: nn.Module, norms: Mapping[str, str], images: torch.Tensor, synthetic: bool
) -> None:
    """
    Gives the outputs of all layers of `marked` the means that they have in `source`, in the running mean of the BatchNorm behind a layer or in
    the layer's bias. Layers with neither are left alone.

    Args:
        norms (`Mapping[str, str]`):
            Name of the BatchNorm behind a layer, by the layer's name.
        images (`torch.Tensor`):
            `[n, channels, height, width]`, all at once: a mean has to be known before the next layer is reached.
        synthetic (`bool`):
            BatchNorms normalise by the batch.
    """
    layers = {
        name: layer
        for name, layer in marked.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and (name in norms or layer.bias is not None)
    }
    means: dict[str, torch.Tensor] = {}

    def remember(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple, output: torch.Tensor) -> None:
            means[name] = _mean(layer, output)

        return hook

    def correct(name: str) -> Any:
        def hook(layer: Any, args: tuple, output: torch.Tensor) -> torch.Tensor:
            shift = _mean(layer, output) - means[name]
            if name in norms:
                norm: Any = marked.get_submodule(norms[name])
                norm.running_mean += shift
                return output
            layer.bias -= shift
            return output - (shift[:, None, None] if isinstance(layer, nn.Conv2d) else shift)

        return hook

    for model, make in ((source, remember), (marked, correct)):
        hooks = [model.get_submodule(name).register_forward_hook(make(name)) for name in layers]
        try:
            with torch.no_grad(), evaluation_mode(model), batch_statistics(model, synthetic):
                model(images)
        finally:
            for hook in hooks:
                hook.remove()


def _mean(layer: nn.Module, output: torch.Tensor) -> torch.Tensor:
    channel = 1 if isinstance(layer, nn.Conv2d) else output.ndim - 1
    return output.float().mean(dim=[axis for axis in range(output.ndim) if axis != channel])
