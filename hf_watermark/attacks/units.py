"""Units of a network (channels and hidden neurons): where they are, how active they are, how to silence them."""

from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .base import NotApplicableError, classifier_head, weight_layers
from .batchnorm import conv_batchnorm_pairs, sample_input


@dataclass(frozen=True)
class UnitLayer:
    """
    Units that are computed together: the output channels of a convolution with the BatchNorm after it, or the outputs of a
    linear layer.

    Args:
        name (`str`):
            Name of the module that carries their scale and shift.
        layer (`nn.Conv2d` or `nn.Linear`):
            Computes them.
        norm (`nn.BatchNorm2d`, *optional*):
            Normalises them.
    """

    name: str
    layer: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | None = None

    @property
    def carrier(self) -> nn.Module:
        """The module whose `weight` and `bias` rows scale and shift each unit: with both at zero a unit is silent."""
        return self.norm or self.layer

    def __len__(self) -> int:
        return self.layer.weight.shape[0]

    def parameters(self) -> list[nn.Parameter]:
        """Parameters of which row i belongs to unit i alone."""
        found = [self.carrier.weight, self.carrier.bias]
        return [parameter for parameter in found if isinstance(parameter, nn.Parameter)]

    @torch.no_grad()
    def silence(self, units: torch.Tensor) -> None:
        """Make the units (bool, one per unit) answer zero."""
        for parameter in self.parameters():
            parameter[units.to(parameter.device)] = 0

    def masks(self, units: torch.Tensor) -> list[torch.Tensor]:
        """Per parameter, `False` on the rows of the units."""
        return [
            (~units).view(-1, *[1] * (parameter.dim() - 1)).expand_as(parameter) for parameter in self.parameters()
        ]


def unit_layers(model: PreTrainedModel, data: Any) -> list[UnitLayer]:
    """
    Layers of units in the order of computation: all pairs of convolution and BatchNorm; in a model without such pairs the
    linear layers that widen (the hidden layers of a transformer's MLPs), or else every layer before the head.

    Raises:
        `NotApplicableError`: if there is no layer besides the classification head.
    """
    names = {id(module): name for name, module in model.named_modules()}
    pairs = conv_batchnorm_pairs(model, sample_input(model, data))
    if pairs:
        return [UnitLayer(names[id(norm)], conv, norm) for conv, norm in pairs]
    head = classifier_head(model)
    layers = [UnitLayer(name, layer) for name, layer in weight_layers(model).items() if layer is not head]
    if not layers:
        raise NotApplicableError(f"{type(model).__name__} has no units besides its classification head.")
    widening = [
        item for item in layers if isinstance(item.layer, nn.Linear) and len(item) > item.layer.weight.shape[1]
    ]
    return widening or layers


@contextmanager
def recorded_outputs(layers: Iterable[UnitLayer]) -> Any:
    """Within, the list holds the last output of each layer's carrier, of shape (B, units, H, W) or (B, ..., units)."""
    layers = list(layers)
    outputs: list[Any] = [None] * len(layers)

    def recorder(place: int) -> Any:
        def record(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            outputs[place] = output

        return record

    hooks = [item.carrier.register_forward_hook(recorder(place)) for place, item in enumerate(layers)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def mean_activity(
    model: PreTrainedModel, layers: list[UnitLayer], images: torch.Tensor, batch_size: int
) -> list[torch.Tensor]:
    """Mean positive part of each unit's output over images (N, C, H, W) and positions: one float64 tensor (units,) per layer."""
    model.eval()
    totals = [torch.zeros(len(item), dtype=torch.float64) for item in layers]
    with recorded_outputs(layers) as outputs:
        for batch in images.split(batch_size):
            model(pixel_values=batch.to(model.device, model.dtype))
            for total, item, output in zip(totals, layers, outputs, strict=True):
                by_unit = output.transpose(1, -1) if isinstance(item.layer, nn.Conv2d) else output
                active = by_unit.relu().reshape(len(batch), -1, len(item)).mean(dim=1)
                total += active.sum(dim=0).double().cpu()
    return [total / len(images) for total in totals]


def stacked_images(data: Any, most: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `most` images of the data, drawn at random, as (N, C, H, W), and their labels (N,)."""
    rows = torch.randperm(len(data), generator=generator)[:most].tolist()
    examples = [data[row] for row in rows]
    images = torch.stack([torch.as_tensor(example["pixel_values"]) for example in examples])
    return images, torch.tensor([int(example["labels"]) for example in examples])
