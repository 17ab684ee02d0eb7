"""Magnitude pruning, with optional fine-tuning of the weights that stay."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedModel, TrainerCallback

from .base import Attack, NotApplicableError, classifier_head, weight_layers
from .finetuning import FineTune


@dataclass
class MagnitudePrune(Attack):
    """
    Set the smallest weights of convolutions and linear layers, except the classification head, to zero.

    Args:
        amount (`float`, *optional*, defaults to 0.5):
            Fraction of the weights to remove.
        scope (`str`, *optional*, defaults to `"global"`):
            `"global"` ranks the weights of all layers together, `"layer"` removes the same fraction of each layer.
        finetune_epochs (`float`, *optional*, defaults to 0):
            Epochs of fine-tuning afterwards, in which removed weights stay at zero. Needs data.
        learning_rate (`float`, *optional*, defaults to 0.01):
            Constant learning rate of that fine-tuning.
        batch_size (`int`, *optional*, defaults to 128):
            Examples per step and process of that fine-tuning.
        optimizer (`str`, *optional*, defaults to `"sgd"`):
            `"sgd"` or `"adamw"`, for that fine-tuning.
        seed (`int`, *optional*, defaults to 0):
            Seed of that fine-tuning.
        progress (`bool`, *optional*, defaults to `False`):
            Show its progress bar.
    """

    name: ClassVar[str] = "magnitude_prune"

    amount: float = 0.5
    scope: Literal["global", "layer"] = "global"
    finetune_epochs: float = 0
    learning_rate: float = 0.01
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        self._check(0 < self.amount < 1, "amount", "give the fraction of weights to remove, between 0 and 1")
        self._check(self.scope in ("global", "layer"), "scope", "choose 'global' or 'layer'")
        self._check(0 <= self.finetune_epochs < float("inf"), "finetune_epochs", "give 0 or a positive number")
        if self.finetune_epochs:
            self._finetuning()  # checks the other fields now, not after pruning

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        if self.finetune_epochs and data is None:
            raise ValueError("MagnitudePrune: finetune_epochs needs data: call attack(model, data), or set it to 0.")
        head = classifier_head(model)
        weights = [layer.weight for layer in weight_layers(model).values() if layer is not head]
        if not weights:
            raise NotApplicableError(
                f"{type(model).__name__} has no weights to prune besides its classification head."
            )
        mask = MaskCallback(weights, magnitude_masks(weights, self.amount, self.scope))
        mask.impose()
        if self.finetune_epochs:
            model.requires_grad_(True)
            self._finetuning().train(model, data, callbacks=[mask])
        return model

    def budget(self, data: Any = None) -> dict[str, int]:
        return self._finetuning().budget(data) if self.finetune_epochs else super().budget(data)

    def _finetuning(self) -> FineTune:
        return FineTune(
            learning_rate=self.learning_rate,
            epochs=self.finetune_epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            seed=self.seed,
            progress=self.progress,
        )


def magnitude_masks(weights: list[torch.Tensor], amount: float, scope: str) -> list[torch.Tensor]:
    """
    Boolean masks, `False` on exactly `round(amount * n)` smallest magnitudes among the `n` weights of each group: all
    tensors together for the scope `"global"`, each tensor alone for `"layer"`.
    """
    if scope == "layer":
        return [magnitude_masks([weight], amount, "global")[0] for weight in weights]
    magnitudes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    count = round(amount * len(magnitudes))
    kept = torch.ones_like(magnitudes, dtype=torch.bool)
    if count:
        threshold = magnitudes.kthvalue(count).values
        kept = magnitudes >= threshold
        # Of equal magnitudes (a quantised model has many) only the first go, else more than asked would.
        ties = (magnitudes == threshold).nonzero().flatten()
        kept[ties[: count - int((~kept).sum())]] = False
    parts = kept.split([weight.numel() for weight in weights])
    return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]


class MaskCallback(TrainerCallback):
    """Zeroes the removed weights again after each optimizer step."""

    def __init__(self, weights: list[torch.Tensor], masks: list[torch.Tensor]) -> None:
        self.weights = weights
        self.masks = masks

    @torch.no_grad()
    def impose(self) -> None:
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.mul_(mask.to(weight.device))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.impose()
