"""Neural attention distillation: the model relearns where to look from its own fine-tuned copy."""

import copy
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from .base import NotApplicableError
from .finetuning import FineTune
from .training import TrainingAttack


@dataclass
class AttentionDistill(TrainingAttack):
    """
    Fine-tune a copy, the teacher, then train the model on its labels and on the teacher's attention maps (Li et al., ICLR
    2021, https://huggingface.co/papers/2101.05930). The options of [`TrainingAttack`], and:

    Args:
        beta (`float`, *optional*, defaults to 500):
            Weight of the distance between the maps; each layer's distance is the mean over its positions.
        teacher_epochs (`float`, *optional*, defaults to 3):
            Epochs of the teacher's fine-tuning, with the same options otherwise.
    """

    name: ClassVar[str] = "attention_distill"

    beta: float = 500
    teacher_epochs: float = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(0 < self.beta < float("inf"), "beta", "give a positive number, such as 500")
        self._check(0 < self.teacher_epochs < float("inf"), "teacher_epochs", "give a positive number")

    def budget(self, data: Any = None) -> dict[str, int]:
        own = super().budget(data)
        teacher = self.training_budget(len(data), self.teacher_epochs)
        return {name: own[name] + (teacher[name] if name != "images" else 0) for name in own}

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        shared = {field.name: vars(self)[field.name] for field in fields(TrainingAttack)}
        teacher = FineTune(**{**shared, "epochs": self.teacher_epochs}).apply(copy.deepcopy(model), data).eval()
        attention_maps(teacher, torch.as_tensor(data[0]["pixel_values"])[None].to(teacher.device, teacher.dtype))
        model.requires_grad_(True)

        def loss(student: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
            outputs = student(**inputs, output_hidden_states=True)
            with torch.no_grad():
                wanted = attention_maps(teacher.to(outputs.loss.device), inputs["pixel_values"])
            return outputs.loss + self.beta * map_distance(maps_of(outputs.hidden_states), wanted), outputs

        return self.train(model, data, loss=loss)


def attention_maps(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """
    One map (B, positions) per block of the model.

    Raises:
        `NotApplicableError`: if the model does not return hidden states.
    """
    try:
        states = model(pixel_values=images, output_hidden_states=True).hidden_states
    except (TypeError, ValueError) as error:
        raise NotApplicableError(f"{type(model).__name__} returns no hidden states: {error}") from None
    if not states:
        raise NotApplicableError(f"{type(model).__name__} returns no hidden states to compare.")
    return maps_of(states)


def maps_of(states: Any) -> list[torch.Tensor]:
    """Sum of squared features at each position, scaled to length 1: (B, C, H, W) or (B, tokens, width) to (B, positions)."""
    maps = [state.square().sum(dim=1 if state.dim() == 4 else -1).flatten(1) for state in states]
    return [F.normalize(item, dim=1) for item in maps]


def map_distance(maps: list[torch.Tensor], wanted: list[torch.Tensor]) -> torch.Tensor:
    """Sum over layers of the mean squared difference."""
    return torch.stack([F.mse_loss(item, target) for item, target in zip(maps, wanted, strict=True)]).sum()
