"""What every removal attack shares: the contract, and the layers it works on."""

import copy
import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from torch import nn
from transformers import PreTrainedModel


class NotApplicableError(ValueError):
    """The attack has nothing to act on in this model. A survival table shows "n/a" there, never "survived"."""


class ImageDataset(Protocol):
    """Map-style data set of `{"pixel_values": float tensor (C, H, W), "labels": int}`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass
class Attack(ABC):
    """
    A removal attack: tries to destroy a mark while keeping the model useful. It knows a model and data, never a mark.

    Subclasses are dataclasses whose fields are the attack's options, and implement [`Attack.apply`], which may change
    the model it is given, because it is given a copy. `needs_data` says whether it takes images, `reads_labels` whether it
    reads the labels of the model's own task from them.
    """

    name: ClassVar[str]
    needs_data: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = False

    def __call__(self, model: PreTrainedModel, data: ImageDataset | None = None) -> PreTrainedModel:
        """
        Args:
            model ([`~transformers.PreTrainedModel`]):
                An image-classification model. It is not changed.
            data ([`ImageDataset`], *optional*):
                The attacker's data.

        Returns:
            [`~transformers.PreTrainedModel`]: The attacked copy, in evaluation mode, on the device of `model`.

        Raises:
            `ValueError`: if the attack needs data and there is none.
            `NotApplicableError`: if the model lacks what the attack acts on.
        """
        if self.needs_data and data is None:
            raise ValueError(f"The attack {self.name!r} needs data: call it as attack(model, data).")
        if data is not None and len(data) == 0:
            raise ValueError(f"The data given to the attack {self.name!r} are empty: give at least one example.")
        device = model.device
        attacked = copy.deepcopy(model)
        attacked.zero_grad(set_to_none=True)
        return self.apply(attacked, data).to(device).eval()  # type: ignore[arg-type]

    @abstractmethod
    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        """Attack `model`, which may be changed in place, and return the result."""

    def budget(self, data: ImageDataset | None = None) -> dict[str, int]:
        """
        What the attack costs, known before it is run and equal on every machine:

        * `images`: different images of the attacker that are read;
        * `steps`: optimizer steps;
        * `examples`: images that pass forward and backward through a network, the inner steps of an attack included;
        * `queries`: images whose answers are asked of the model under attack.

        Args:
            data ([`ImageDataset`], *optional*):
                The attacker's data.

        Raises:
            `ValueError`: if the attack needs data and there is none.
        """
        if self.needs_data and data is None:
            raise ValueError(f"The budget of {self.name!r} depends on the data: call budget(data).")
        return spent()

    def options(self) -> dict[str, Any]:
        """Name and fields as plain JSON values; models, data sets and other attacks by a description."""
        return {field.name: describe(getattr(self, field.name)) for field in fields(self)} | {"name": self.name}

    def _check(self, valid: bool, field: str, fix: str) -> None:
        if not valid:
            raise ValueError(f"{type(self).__name__}: {field}={vars(self)[field]!r} is not usable; {fix}.")


def spent(images: int = 0, steps: int = 0, examples: int = 0, queries: int = 0) -> dict[str, int]:
    """A budget as [`Attack.budget`] returns it."""
    return {"images": images, "steps": steps, "examples": examples, "queries": queries}


def describe(value: Any) -> Any:
    """The value of an option, for a table: JSON values stay as they are."""
    if isinstance(value, Attack):
        return value.options()
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, nn.Module):
        return getattr(value, "name_or_path", "") or type(value).__name__
    if isinstance(value, list | tuple) and len(value) < 20:
        return [describe(item) for item in value]
    return f"{len(value)} images" if hasattr(value, "__len__") else str(value)


def private_seed(attack: str, seed: int) -> int:
    """
    A 32-bit seed that belongs to one attack. A seed used as it is would repeat the numbers that initialised a model
    under the same seed: noise would follow its weights, and a "fresh" student would start as its teacher started.
    """
    return int.from_bytes(hashlib.sha256(f"hf_watermark.attacks/{attack}/{seed}".encode()).digest()[:4])


def weight_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers by name, in order of registration."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def classifier_head(model: PreTrainedModel) -> nn.Conv2d | nn.Linear:
    """
    The classification head: the last layer registered that has one output per label.

    Raises:
        `NotApplicableError`: if no layer has as many outputs as the model has labels.
    """
    labels = model.config.num_labels
    for layer in reversed(weight_layers(model).values()):
        if layer.weight.shape[0] == labels:
            return layer
    raise NotApplicableError(f"{type(model).__name__} has no convolution or linear layer with {labels} outputs.")
