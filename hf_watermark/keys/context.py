"""What is committed about the owner's model: how to build it, its classes, how its inputs are normalised, and what it was before the mark."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..serialization import InvalidInput, canonical_json, named_tensors_digest


if TYPE_CHECKING:
    from torch import Tensor

FIELDS = ("backbone", "classes", "mean", "start", "std")
MOST_CHANNELS = 64


@dataclass(frozen=True)
class ModelContext:
    """
    Args:
        backbone (`dict`, *optional*):
            Config of the owner's model, by which a suspect's tensors can be run without the suspect's own config. Empty for bare modules.
        classes (`tuple[str, ...]`, *optional*):
            Class names in the order of the model's answers; an endpoint answers with names. Empty where the model has none.
        mean, std (`tuple[float, ...]`, *optional*):
            Per channel: pixels in 0..1 were turned into `(pixel - mean) / std`. Empty where the trainer was not told.
        start (`str`, *optional*):
            [`start_digest`] of the model when the key was made, before any mark: the one reference of an aligned reading that needs no date.
    """

    backbone: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    start: str = ""

    @classmethod
    def of(
        cls,
        backbone: Mapping[str, Any] | None,
        mean: Any = None,
        std: Any = None,
        classes: Any = None,
        start: str = "",
    ) -> "ModelContext":
        """From a model's config (see [`~backbones.backbone_record`]); what is not given is taken from there, if it is there."""
        record = dict(backbone or {})
        pretrained = record.get("pretrained_cfg") or {}
        return cls(
            backbone=record,
            classes=tuple(classes if classes is not None else class_names(record)),
            mean=tuple(map(float, mean if mean is not None else pretrained.get("mean") or ())),
            std=tuple(map(float, std if std is not None else pretrained.get("std") or ())),
            start=start,
        )

    @cached_property
    def digest(self) -> bytes:
        return hashlib.sha256(canonical_json(self.to_dict())).digest()

    @property
    def labels(self) -> dict[str, int]:
        """Class names and their numbers."""
        return {name: place for place, name in enumerate(self.classes)}

    def to_dict(self) -> dict[str, Any]:
        return {
            "backbone": self.backbone,
            "classes": list(self.classes),
            "mean": list(self.mean),
            "start": self.start,
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, data: Any) -> "ModelContext":
        """
        Raises:
            [`~serialization.InvalidInput`]: for anything that `to_dict` would not have written.
        """
        if not isinstance(data, dict) or sorted(data) != sorted(FIELDS) or not isinstance(data["backbone"], dict):
            raise InvalidInput(f"model record: expected exactly the fields {', '.join(FIELDS)}")
        classes = data["classes"]
        if not isinstance(classes, list) or not all(type(name) is str for name in classes):
            raise InvalidInput("model record: `classes` must be a list of names")
        if len(set(classes)) != len(classes):
            raise InvalidInput("model record: two classes have one name")
        for name in ("mean", "std"):
            values = data[name]
            if not isinstance(values, list) or len(values) > MOST_CHANNELS:
                raise InvalidInput(f"model record: `{name}` must be a list of numbers, one per channel")
            if not all(type(value) in (int, float) for value in values):
                raise InvalidInput(f"model record: `{name}` must be a list of numbers, one per channel")
        if len(data["mean"]) != len(data["std"]) or any(value <= 0 for value in data["std"]):
            raise InvalidInput("model record: `mean` and `std` need one entry per channel, `std` above 0")
        start = data["start"]
        if type(start) is not str or (start and not re.fullmatch("[0-9a-f]{64}", start)):
            raise InvalidInput("model record: `start` must be a digest of 64 hexadecimal digits, or empty")
        return cls(
            dict(data["backbone"]),
            tuple(classes),
            tuple(map(float, data["mean"])),
            tuple(map(float, data["std"])),
            start,
        )


def start_digest(state: "Mapping[str, Tensor]") -> str:
    """
    Digest of a model's tensors with their names, whatever precision they are loaded in; empty where they are not all here (a model that is
    sharded, or on the meta device).

    Args:
        state (`Mapping[str, torch.Tensor]`):
            `state_dict()` of the model.
    """
    if any(tensor.is_meta or type(tensor).__name__ == "DTensor" for tensor in state.values()):
        return ""
    return named_tensors_digest(
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    )


def class_names(backbone: Mapping[str, Any]) -> list[str]:
    """
    Class names of a model's config in the order of its answers; none where they are not one name for each number from 0 on.
    """
    names = backbone.get("id2label") or {}
    try:
        numbered = {int(place): str(name) for place, name in names.items()}
    except (AttributeError, TypeError, ValueError):
        return []
    if sorted(numbered) != list(range(len(numbered))) or len(set(numbered.values())) != len(numbered):
        return []
    return [numbered[place] for place in range(len(numbered))]
