"""Gaussian noise on the weights."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from .base import Attack, private_seed


@dataclass
class WeightNoise(Attack):
    """
    Add independent Gaussian noise to every parameter, scaled by the standard deviation of its tensor.

    Buffers (BatchNorm running statistics, counters) are left alone, and so is a tensor whose entries are all equal.

    Args:
        relative_std (`float`, *optional*, defaults to 0.1):
            Standard deviation of the noise, in units of the standard deviation of the tensor it is added to.
        seed (`int`, *optional*, defaults to 0):
            Seed of the noise.
    """

    name: ClassVar[str] = "weight_noise"

    relative_std: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        self._check(0 < self.relative_std < float("inf"), "relative_std", "give a positive number, such as 0.1")

    @torch.no_grad()
    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        generator = torch.Generator().manual_seed(private_seed(self.name, self.seed))
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)  # on the CPU: the same noise on every device
            spread = parameter.float().std(correction=0)
            parameter.add_((noise.to(parameter.device) * spread * self.relative_std).to(parameter.dtype))
        return model
