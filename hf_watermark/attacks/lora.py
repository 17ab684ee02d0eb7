"""LoRA: fine-tuning of low-rank updates with `peft`, merged into the weights afterwards."""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from .base import NotApplicableError, classifier_head, private_seed, weight_layers
from .training import TrainingAttack


@dataclass
class LoraFineTune(TrainingAttack):
    """
    Train low-rank updates of all convolutions and linear layers, and the head in full, then merge them (Hu et al.,
    https://huggingface.co/papers/2106.09685). BatchNorm parameters stay as they are, its statistics move. Convolutions with
    groups are left out: one update of low rank is not defined for them. Needs `peft` (extra `attacks`). The options of
    [`TrainingAttack`], and:

    Args:
        rank (`int`, *optional*, defaults to 8):
            Rank of each update.
        alpha (`float`, *optional*, defaults to 16):
            Updates are multiplied by `alpha / rank`.
    """

    name: ClassVar[str] = "lora"

    rank: int = 8
    alpha: float = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(isinstance(self.rank, int) and self.rank > 0, "rank", "give a positive integer")
        self._check(0 < self.alpha < float("inf"), "alpha", "give a positive number")

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        if not is_peft_available():
            raise ImportError("LoraFineTune: peft is not installed; run `pip install hf-watermark[attacks]`.")
        from peft import LoraConfig, get_peft_model

        head = classifier_head(model)
        targets = [
            name
            for name, layer in weight_layers(model).items()
            if layer is not head and not (isinstance(layer, nn.Conv2d) and layer.groups > 1)
        ]
        if not targets:
            raise NotApplicableError(f"{type(model).__name__} has no layer for LoRA besides its classification head.")
        (head_name,) = [name for name, layer in model.named_modules() if layer is head]
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            target_modules=targets,
            modules_to_save=[head_name],
            lora_dropout=0.0,
        )
        # peft draws from the global generator, and asks transformers by a name that is going to change.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.random.default_generator.manual_seed(private_seed(f"{self.name}/init", self.seed))
            adapted = get_peft_model(model, config)
        self.train(adapted, data)  # type: ignore[arg-type]
        merged: Any = adapted.merge_and_unload()
        merged.requires_grad_(True)
        return merged
