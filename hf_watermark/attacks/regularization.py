"""Fine-tuning that pulls the model away from where it was: strong decay, shifted filters, softened or noisy labels."""

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from .base import classifier_head, private_seed, weight_layers
from .training import TrainingAttack, answers_of


@dataclass
class Regularize(TrainingAttack):
    """
    Train under strong weight decay, which forgets what few examples hold, then fine-tune back with the usual decay (the
    "regularization" attack of Lukas et al., https://huggingface.co/papers/2108.04974). The options of [`TrainingAttack`],
    which are those of the second phase, and:

    Args:
        decay (`float`, *optional*, defaults to 0.1):
            Weight decay of the first phase.
        decay_epochs (`float`, *optional*, defaults to 3):
            Epochs of the first phase.
    """

    name: ClassVar[str] = "regularize"

    decay: float = 0.1
    decay_epochs: float = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(0 < self.decay < float("inf"), "decay", "give a positive number, such as 0.1")
        self._check(0 < self.decay_epochs < float("inf"), "decay_epochs", "give a positive number")

    def budget(self, data: Any = None) -> dict[str, int]:
        second = super().budget(data)
        first = self.training_budget(len(data), self.decay_epochs)
        return {name: second[name] + (first[name] if name != "images" else 0) for name in second}

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        model.requires_grad_(True)
        replace(self, weight_decay=self.decay, epochs=self.decay_epochs).train(model, data)
        return self.train(model, data)


@dataclass
class WeightShift(TrainingAttack):
    """
    Subtract a multiple of the mean filter from all filters of each layer but the head, add noise, then fine-tune (Lukas et
    al., https://huggingface.co/papers/2108.04974). The options of [`TrainingAttack`], and:

    Args:
        shift (`float`, *optional*, defaults to 1.5):
            How many means over the output filters to subtract.
        noise (`float`, *optional*, defaults to 0.0):
            Standard deviation of the noise, in units of the standard deviation of the layer's weights.
    """

    name: ClassVar[str] = "weight_shift"

    shift: float = 1.5
    noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(0 < self.shift < float("inf"), "shift", "give a positive number, such as 1.5")
        self._check(0 <= self.noise < float("inf"), "noise", "give 0 or a positive number")

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        self.move(model)
        model.requires_grad_(True)
        return self.train(model, data)

    @torch.no_grad()
    def move(self, model: PreTrainedModel) -> None:
        """Shift the weights in place."""
        generator = torch.Generator().manual_seed(private_seed(f"{self.name}/noise", self.seed))
        head = classifier_head(model)
        for layer in weight_layers(model).values():
            if layer is not head:
                noise = torch.randn(layer.weight.shape, generator=generator).to(layer.weight)
                spread = layer.weight.std(correction=0)
                layer.weight.add_(self.noise * spread * noise - self.shift * layer.weight.mean(dim=0, keepdim=True))


@dataclass
class SoftLabelFineTune(TrainingAttack):
    """
    Fine-tune on labels made of the model's own answers with the small probabilities, in which soft-label marks live, taken
    out; the labels of the data are not read (the "label smoothing" and "label noising" attacks of Lukas et al.,
    https://huggingface.co/papers/2108.04974). The options of [`TrainingAttack`], and:

    Args:
        top (`int`, *optional*, defaults to 1):
            How many of the greatest probabilities are kept, and made to add up to 1.
        smoothing (`float`, *optional*, defaults to 0.3):
            Share of each label that is spread over the other classes.
        spread (`str`, *optional*, defaults to `"even"`):
            `"even"` over all classes (smoothing), or `"shuffled"`: the label with its classes permuted anew for each image
            (noising).
    """

    name: ClassVar[str] = "soft_label_finetune"
    reads_labels: ClassVar[bool] = False

    top: int = 1
    smoothing: float = 0.3
    spread: str = "even"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(isinstance(self.top, int) and self.top > 0, "top", "give a positive integer")
        self._check(0 <= self.smoothing <= 1, "smoothing", "give a number from 0 to 1")
        self._check(self.spread in ("even", "shuffled"), "spread", "choose 'even' or 'shuffled'")

    def budget(self, data: Any = None) -> dict[str, int]:
        budget = super().budget(data)
        return budget | {"queries": budget["examples"]}

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        teacher = copy.deepcopy(model).eval()
        model.requires_grad_(True)
        generator = torch.Generator().manual_seed(private_seed(f"{self.name}/labels", self.seed))
        shuffled = generator if self.spread == "shuffled" else None

        def loss(student: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
            answers = answers_of(teacher, inputs["pixel_values"]).float().softmax(dim=1)
            labels = softened(answers, self.top, self.smoothing, shuffled)
            outputs = student(pixel_values=inputs["pixel_values"])
            return F.cross_entropy(outputs.logits.float(), labels), outputs

        return self.train(model, data, loss=loss)


def softened(
    answers: torch.Tensor, top: int, smoothing: float, shuffled: torch.Generator | None = None
) -> torch.Tensor:
    """
    Label vectors (B, C) from probabilities (B, C): the `top` greatest, made to add up to 1, mixed with a share `smoothing` of
    the uniform distribution, or of the vector itself with its classes permuted by a generator.
    """
    best = answers.topk(min(top, answers.shape[1]), dim=1)
    labels = torch.zeros_like(answers).scatter(1, best.indices, best.values)
    labels = labels / labels.sum(dim=1, keepdim=True)
    if shuffled is None:
        return (1 - smoothing) * labels + smoothing / labels.shape[1]
    order = torch.rand(labels.shape, generator=shuffled).argsort(dim=1).to(labels.device)
    return (1 - smoothing) * labels + smoothing * labels.gather(1, order)
