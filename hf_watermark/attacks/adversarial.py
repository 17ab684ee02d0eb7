"""
Fine-tuning on harder examples: adversarial ones, and ones with a part hidden.

Projected gradient descent is written here (fifteen lines): that of adversarial-robustness-toolbox works on numpy copies
inside an estimator with an optimizer of its own, which `Trainer` cannot drive.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..backbones import evaluation_mode
from .base import private_seed
from .preprocessing import pixel_range
from .training import TrainingAttack


@dataclass
class AdversarialFineTune(TrainingAttack):
    """
    Fine-tune on adversarial examples (Madry et al., https://huggingface.co/papers/1706.06083): triggers near the decision
    boundary lose their answers. The options of [`TrainingAttack`], and:

    Args:
        epsilon (`float`, *optional*, defaults to 0.03):
            Largest change of a pixel, as a share of the range of pixel values in the data.
        inner_steps (`int`, *optional*, defaults to 5):
            Gradient steps per batch; one is the fast gradient sign method with a random start.
    """

    name: ClassVar[str] = "adversarial_finetune"

    epsilon: float = 0.03
    inner_steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(0 < self.epsilon <= 1, "epsilon", "give a share of the pixel range, above 0, up to 1")
        self._check(
            isinstance(self.inner_steps, int) and self.inner_steps > 0, "inner_steps", "give a positive integer"
        )

    def budget(self, data: Any = None) -> dict[str, int]:
        budget = super().budget(data)
        return budget | {"examples": budget["examples"] * (self.inner_steps + 1)}

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        low, high = (torch.tensor(side).view(1, -1, 1, 1) for side in pixel_range(data))
        model.requires_grad_(True)
        generator = torch.Generator().manual_seed(private_seed(f"{self.name}/start", self.seed))

        def change(bare: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
            images = inputs["pixel_values"]
            least, most = low.to(images), high.to(images)
            start = (2 * torch.rand(images.shape, generator=generator) - 1).to(images)
            radius = self.epsilon * (most - least)
            return adversarial_examples(bare, images, inputs["labels"], radius, self.inner_steps, start, least, most)

        return self.train(model, data, change=change)


def adversarial_examples(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    radius: torch.Tensor,
    steps: int,
    start: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
) -> torch.Tensor:
    """
    Images within `radius` (largest change of a pixel, (1, C, 1, 1)) of the given ones, (B, C, H, W), and between `low` and
    `high`, on which the model's loss is high. Each of `steps` goes `2.5 / steps` of the radius; `start`, in [-1, 1], is the
    first change in units of the radius. The model is run in evaluation mode and gets no gradients.
    """
    change = radius * start
    for _ in range(steps):
        change.requires_grad_()
        with evaluation_mode(model):
            loss = F.cross_entropy(model(pixel_values=images + change).logits.float(), labels)
        (slope,) = torch.autograd.grad(loss, change)
        change = change.detach() + 2.5 / steps * radius * slope.sign()
        change = torch.minimum(torch.maximum(change, -radius), radius)
        change = torch.minimum(torch.maximum(images + change, low), high) - images
    return (images + change).detach()


@dataclass
class OccludeFineTune(TrainingAttack):
    """
    Fine-tune on images in which a rectangle is replaced by noise of the images' own mean and spread: rules that hang on a
    patch are unlearnt. The options of [`TrainingAttack`], and:

    Args:
        area (`float`, *optional*, defaults to 0.25):
            Share of the image that the rectangle covers; its place and shape change from image to image.
    """

    name: ClassVar[str] = "occlude_finetune"

    area: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(0 < self.area < 1, "area", "give the share of the image to cover, between 0 and 1")

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        model.requires_grad_(True)
        generator = torch.Generator().manual_seed(private_seed(f"{self.name}/boxes", self.seed))
        return self.train(
            model, data, change=lambda bare, inputs: occlude(inputs["pixel_values"], self.area, generator)
        )


def occlude(images: torch.Tensor, area: float, generator: torch.Generator) -> torch.Tensor:
    """A copy of images (B, C, H, W) with one rectangle of noise each, of `area` times the image and a random side ratio."""
    count, _, height, width = images.shape
    noise = torch.randn(images.shape, generator=generator).to(images) * images.std() + images.mean()
    ratio = 2 ** (2 * torch.rand(count, generator=generator) - 1)  # from 1/2 to 2
    rows = (height * (area * ratio).sqrt()).round().clamp(1, height)
    columns = (area * height * width / rows).round().clamp(1, width)
    top = (torch.rand(count, generator=generator) * (height - rows + 1)).floor()
    left = (torch.rand(count, generator=generator) * (width - columns + 1)).floor()
    y, x = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    top, left, rows, columns = (value[:, None, None] for value in (top, left, rows, columns))
    inside = (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns)
    return torch.where(inside[:, None].to(images.device), noise, images)
