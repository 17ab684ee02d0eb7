"""Fine-tuning, in place, after a reset of the last layer, or onto another label set."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from .base import ImageDataset, classifier_head, private_seed
from .training import TrainingAttack


@dataclass
class FineTune(TrainingAttack):
    """
    Go on training with the labels of the data. The options of [`TrainingAttack`], and:

    A small rate proves little: run a grid up to the rate the model was trained with, and above it with
    `schedule="refit"`.

    Args:
        scope (`str`, *optional*, defaults to `"all"`):
            `"all"` layers, or the `"last"` one alone (BatchNorm statistics stay as they are).
        reset_head (`bool`, *optional*, defaults to `False`):
            Re-initialise the last layer first.
    """

    name: ClassVar[str] = "finetune"

    scope: Literal["all", "last"] = "all"
    reset_head: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(self.scope in ("all", "last"), "scope", "choose 'all' or 'last'")

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        if self.reset_head:
            replace_head(model, classifier_head(model).weight.shape[0], self.seed)
        head = classifier_head(model)
        model.requires_grad_(self.scope == "all")
        head.requires_grad_(True)
        self.train(model, data, eval_mode=self.scope == "last")
        model.requires_grad_(True)
        return model


@dataclass
class ResetHead(FineTune):
    """
    Re-initialise the last layer, then train it (`scope="last"`, known as RTLL) or every layer (`scope="all"`, RTAL).
    Options as in [`FineTune`].
    """

    name: ClassVar[str] = "reset_head"

    scope: Literal["all", "last"] = "last"
    reset_head: bool = field(default=True, init=False)


@dataclass
class Transfer(FineTune):
    """
    Give the model a new head for another label set, and train all layers (or the head alone) on that task.

    Args:
        labels_modulo (`int`, *optional*):
            Derive the new task from the data at hand: new label = old label modulo this number. 2 if neither this nor
            `num_labels` is given.
        num_labels (`int`, *optional*):
            Number of labels of the new task, for data that already have the labels of that task.
    """

    name: ClassVar[str] = "transfer"

    labels_modulo: int | None = None
    num_labels: int | None = None
    reset_head: bool = field(default=False, init=False)  # the head is new in any case

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels_modulo is None and self.num_labels is None:
            self.labels_modulo = 2
        alone = self.labels_modulo is None or self.num_labels is None
        self._check(alone, "labels_modulo", f"leave it out, or leave out num_labels={self.num_labels}")
        option = "labels_modulo" if self.num_labels is None else "num_labels"
        count = vars(self)[option]
        self._check(isinstance(count, int) and count >= 2, option, "give a whole number of at least 2")

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        if self.labels_modulo is not None:
            data = _ModuloLabels(data, self.labels_modulo)
        replace_head(model, cast(int, self.labels_modulo or self.num_labels), self.seed)  # one of them is set
        return super().apply(model, data)


class _ModuloLabels(Dataset):
    def __init__(self, data: ImageDataset, modulus: int) -> None:
        self.data = data
        self.modulus = modulus

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.data[index]
        return {"pixel_values": example["pixel_values"], "labels": int(example["labels"]) % self.modulus}


def replace_head(model: PreTrainedModel, num_labels: int, seed: int) -> None:
    """
    Give the classification head of `model` new random weights for `num_labels` outputs, drawn as `torch` initialises
    such a layer (uniform, bound `1 / sqrt(fan_in)`).
    """
    head = classifier_head(model)
    shape = (num_labels, *head.weight.shape[1:])
    bound = 1 / math.sqrt(head.weight[0].numel())
    generator = torch.Generator().manual_seed(private_seed("head", seed))
    head.weight = nn.Parameter((2 * torch.rand(shape, generator=generator) - 1).to(head.weight) * bound)
    if head.bias is not None:
        head.bias = nn.Parameter((2 * torch.rand(num_labels, generator=generator) - 1).to(head.bias) * bound)
    if isinstance(head, nn.Conv2d):
        head.out_channels = num_labels
    else:
        head.out_features = num_labels
    if num_labels != model.config.num_labels:  # a mere reset keeps the names of the labels
        model.config.num_labels = num_labels
        model.num_labels = num_labels  # type: ignore[assignment]
