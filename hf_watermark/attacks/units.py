"""Units of a network (channels and hidden neurons): where they are, how active they are, how to silence them."""

from collections.abc import Callable, Sequence
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

    @torch.no_grad()
    def reset(self, units: torch.Tensor, generator: torch.Generator) -> None:
        """New weights for units (bool), normal with the spread of the layer's; scale 1 and shift 0 in their BatchNorm."""
        weight = self.layer.weight
        fresh = torch.randn(weight.shape, generator=generator).to(weight) * weight.std(correction=0)
        weight[units] = fresh[units]
        if self.layer.bias is not None:
            self.layer.bias[units] = 0
        if self.norm is not None:
            self.norm.weight[units], self.norm.bias[units] = 1, 0

    def masks(self, units: torch.Tensor) -> list[torch.Tensor]:
        """Per parameter, `False` on the rows of the units."""
        return [
            (~units).view(-1, *[1] * (parameter.dim() - 1)).expand_as(parameter) for parameter in self.parameters()
        ]

    def watch(self, record: Callable[[torch.Tensor], None]) -> Any:
        """Register a hook that records the units' outputs, (B, units, H, W) or (B, ..., units)."""
        return self.carrier.register_forward_hook(lambda module, args, output: record(output))


@dataclass(frozen=True)
class HeadInputs:
    """
    The features that the classification head reads. To silence one is to silence a unit of the last block, whatever paths lead
    there.

    Args:
        layer (`nn.Conv2d` or `nn.Linear`):
            The head.
    """

    layer: nn.Conv2d | nn.Linear

    def __len__(self) -> int:
        return self.layer.weight.shape[1]

    def parameters(self) -> list[nn.Parameter]:
        """The head's weight, of which column i reads feature i."""
        return [self.layer.weight]  # type: ignore[list-item]

    @torch.no_grad()
    def silence(self, units: torch.Tensor) -> None:
        """Make the head ignore the features (bool)."""
        self.layer.weight[:, units.to(self.layer.weight.device)] = 0

    @torch.no_grad()
    def reset(self, units: torch.Tensor, generator: torch.Generator) -> None:
        """New weights for features (bool), normal with the spread of the head's."""
        weight = self.layer.weight
        fresh = torch.randn(weight.shape, generator=generator).to(weight) * weight.std(correction=0)
        weight[:, units] = fresh[:, units]

    def masks(self, units: torch.Tensor) -> list[torch.Tensor]:
        """`False` on the columns of the features."""
        weight = self.layer.weight
        return [(~units).view(1, -1, *[1] * (weight.dim() - 2)).expand_as(weight)]

    def watch(self, record: Callable[[torch.Tensor], None]) -> Any:
        """Register a hook that records the features."""
        return self.layer.register_forward_pre_hook(lambda module, args: record(args[0]))


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


def last_units(model: PreTrainedModel, data: Any, layers: int) -> list[UnitLayer | HeadInputs]:
    """The features that the head reads, after the last `layers` layers of units."""
    return [*unit_layers(model, data)[-layers:], HeadInputs(classifier_head(model))]


@torch.no_grad()
def mean_activity(
    model: PreTrainedModel, layers: Sequence[UnitLayer | HeadInputs], images: torch.Tensor, batch_size: int
) -> list[torch.Tensor]:
    """Mean positive part of each unit over images (N, C, H, W) and positions: one float64 tensor (units,) per layer."""
    model.eval()
    totals = [torch.zeros(len(item), dtype=torch.float64) for item in layers]

    def recorder(item: UnitLayer | HeadInputs, total: torch.Tensor) -> Callable[[torch.Tensor], None]:
        def record(output: torch.Tensor) -> None:
            by_unit = output.transpose(1, -1) if isinstance(item.layer, nn.Conv2d) else output
            flat = by_unit.relu().reshape(-1, len(item)).double()
            total.add_(flat.sum(dim=0).cpu() * (size / len(flat)))  # per image: the mean over positions

        return record

    hooks = [item.watch(recorder(item, total)) for item, total in zip(layers, totals, strict=True)]
    try:
        for batch in images.split(batch_size):
            size = len(batch)
            model(pixel_values=batch.to(model.device, model.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return [total / len(images) for total in totals]


def stacked_images(data: Any, most: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `most` images of the data, drawn at random, as (N, C, H, W), and their labels (N,)."""
    rows = torch.randperm(len(data), generator=generator)[:most].tolist()
    examples = [data[row] for row in rows]
    images = torch.stack([torch.as_tensor(example["pixel_values"]) for example in examples])
    return images, torch.tensor([int(example["labels"]) for example in examples])
