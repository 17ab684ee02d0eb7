"""Distillation: a student that never had the teacher's weights learns its answers."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from .base import private_seed
from .training import TrainingAttack, answers_of


@dataclass
class Distill(TrainingAttack):
    """
    Train a fresh student on the answers of the model to the attacker's images; labels of the data are not read. The
    options of [`TrainingAttack`], here with AdamW and a cosine schedule, and:

    Args:
        mode (`str`, *optional*, defaults to `"soft"`):
            `"soft"`: match the teacher's probabilities (Hinton et al., 2015, section 2); `"hard"`: learn its top label,
            all that an endpoint without probabilities gives away.
        temperature (`float`, *optional*, defaults to 4.0):
            Softens both distributions in mode `"soft"`; the loss is multiplied by its square.
        student (`str`, *optional*, defaults to `"same"`):
            `"same"` architecture, newly initialised, or `"other"`: a small ViT for a teacher with BatchNorm, a small
            ResNet for any other teacher.
    """

    name: ClassVar[str] = "distill"
    reads_labels: ClassVar[bool] = False

    learning_rate: float = 1e-3
    epochs: float = 30
    optimizer: Literal["sgd", "adamw"] = "adamw"
    schedule: Literal["constant", "cosine", "refit"] = "cosine"
    mode: Literal["soft", "hard"] = "soft"
    temperature: float = 4.0
    student: Literal["same", "other"] = "same"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(self.mode in ("soft", "hard"), "mode", "choose 'soft' or 'hard'")
        self._check(0 < self.temperature < float("inf"), "temperature", "give a positive number, such as 4.0")
        self._check(self.student in ("same", "other"), "student", "choose 'same' or 'other'")

    def budget(self, data: Any = None) -> dict[str, int]:
        budget = super().budget(data)
        return budget | {"queries": budget["examples"]}  # the teacher answers every image again in each epoch

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):  # initialisers of transformers and timm know the global generator only
            torch.random.default_generator.manual_seed(private_seed(self.name, self.seed))
            if self.student == "same":
                student = fresh_copy(model)
            else:
                student = other_architecture(model, tuple(data[0]["pixel_values"].shape))
        teacher, temperature = model.eval(), self.temperature if self.mode == "soft" else None

        def loss(student: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
            target = answers_of(teacher, inputs["pixel_values"])
            outputs = student(pixel_values=inputs["pixel_values"])
            return distillation_loss(outputs.logits, target, temperature), outputs

        return self.train(student, data, loss=loss)


def fresh_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A newly initialised model of the same class and config, with timm's own initialisation for timm models."""
    config = copy.deepcopy(model.config)
    fresh = type(model)(config)
    if isinstance(fresh, TimmWrapperForImageClassification):
        import timm

        # The wrapper overwrites timm's initialisation by normal noise of standard deviation 0.02.
        plain = timm.create_model(config.architecture, num_classes=config.num_labels, **(config.model_args or {}))
        fresh.timm_model.load_state_dict(plain.state_dict())
    return fresh


def other_architecture(model: PreTrainedModel, image_shape: tuple[int, int, int]) -> PreTrainedModel:
    """A small student unlike `model`: a ViT where `model` has BatchNorm, else a ResNet. `image_shape` is (C, H, W)."""
    channels, height, width = image_shape
    common: dict[str, Any] = {
        "num_channels": channels,
        "id2label": model.config.id2label,
        "label2id": model.config.label2id,
    }
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        return ResNetForImageClassification(
            ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic", **common)
        )
    # With 65 tokens on a processor the fused attention is the slower one, 2.4 times in bfloat16.
    common["attn_implementation"] = "eager"
    return ViTForImageClassification(
        ViTConfig(
            image_size=(height, width),
            patch_size=(max(1, height // 8), max(1, width // 8)),  # about 64 patches at any resolution
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=192,
            **common,
        )
    )


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float | None) -> torch.Tensor:
    """
    Args:
        student (`torch.Tensor`):
            Logits of shape (B, C).
        teacher (`torch.Tensor`):
            Logits of shape (B, C).
        temperature (`float`, *optional*):
            Without it, cross-entropy with the teacher's top label; with it, the divergence of the softened
            distributions, KL(teacher || student), times its square, in nats per example.
    """
    if temperature is None:
        return F.cross_entropy(student, teacher.argmax(dim=-1))
    target = F.log_softmax(teacher / temperature, dim=-1)
    answer = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(answer, target, reduction="batchmean", log_target=True) * temperature**2
