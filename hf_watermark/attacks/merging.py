"""
Merging: the mean of two models that share an ancestor is often as good as both, and each mark is diluted.

Interpolation of state dicts is ten lines; the libraries that have it (mergekit) are made for language models.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

from .base import Attack, NotApplicableError
from .finetuning import FineTune


@dataclass
class Merge(Attack):
    """
    Interpolate all weights linearly with those of another model of the same architecture, such as the public base that the
    model was fine-tuned from: `(1 - weight) * model + weight * other`. Tensors that the other model lacks, or has in another
    shape (its head), stay as they are; so do integers.

    Args:
        other ([`~transformers.PreTrainedModel`] or `str`):
            The other model, or a local folder of one.
        weight (`float`, *optional*, defaults to 0.5):
            Share of the other model.
    """

    name: ClassVar[str] = "merge"

    other: PreTrainedModel | str | None = None
    weight: float = 0.5

    def __post_init__(self) -> None:
        _check_weight(self)

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        if self.other is None:
            raise ValueError("Merge: other=None is not usable; give a model, or the folder of one, to merge with.")
        interpolate(model, self._other(), self.weight)
        return model

    def _other(self) -> PreTrainedModel:
        if not isinstance(self.other, str):
            return self.other  # type: ignore[return-value]
        if not (Path(self.other) / "config.json").is_file():
            raise ValueError(f"Merge: other={self.other!r} is not usable; give a folder with config.json and weights.")
        return AutoModelForImageClassification.from_pretrained(
            self.other, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )


@dataclass
class MergeSibling(FineTune):
    """
    Fine-tune a copy on the attacker's data and interpolate with it: the thief's own continuation, with less of the mark than
    the stolen model and more accuracy than its own. The options of [`FineTune`], and:

    Args:
        weight (`float`, *optional*, defaults to 0.5):
            Share of the fine-tuned copy.
    """

    name: ClassVar[str] = "merge_sibling"

    weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weight(self)

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        sibling = super().apply(copy.deepcopy(model), data)
        interpolate(model, sibling, self.weight)
        return model


def _check_weight(attack: Merge | MergeSibling) -> None:
    attack._check(0 < attack.weight <= 1, "weight", "give the share of the other model, above 0, up to 1")


@torch.no_grad()
def interpolate(model: PreTrainedModel, other: PreTrainedModel, weight: float) -> None:
    """
    Move `model`, in place, a share `weight` of the way to `other`.

    Raises:
        `NotApplicableError`: if less than half of the parameters have a partner of the same name and shape.
    """
    theirs = other.state_dict()
    ours = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    shared = {name for name, tensor in ours.items() if name in theirs and theirs[name].shape == tensor.shape}
    if sum(ours[name].numel() for name in shared) < sum(tensor.numel() for tensor in ours.values()) / 2:
        raise NotApplicableError(
            f"{type(other).__name__} shares {len(shared)} of {len(ours)} tensors with {type(model).__name__}: merging needs "
            "the same architecture."
        )
    for name in shared:
        ours[name].lerp_(theirs[name].to(ours[name]), weight)
