"""Batches and answers in the forms that loops have: mappings as in transformers, and pairs of images and labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import default_data_collator

from ..backbones import logits_of
from ..serialization import InvalidInput
from ..training.embedding import TrainingData


IMAGES, LABELS = "pixel_values", "labels"


def as_mapping(batch: Any) -> Mapping[str, Any]:
    """
    A batch by names.

    Raises:
        [`~serialization.InvalidInput`]: when it is neither a mapping with `pixel_values` and `labels` nor a pair of images and labels.
    """
    if is_pair(batch):
        return {IMAGES: batch[0], LABELS: torch.as_tensor(batch[1])}
    if not isinstance(batch, Mapping) or LABELS not in batch or IMAGES not in batch:
        found = (
            f"a mapping with {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        )
        raise InvalidInput(
            f"the batch is {found}: give a mapping with `{IMAGES}` [n, channels, height, width] and `{LABELS}` [n], or a pair of these"
        )
    return batch


def in_form_of(given: Any, batch: Mapping[str, Any]) -> Any:
    """A batch by names in the form of the one that was given."""
    return type(given)((batch[IMAGES], batch[LABELS])) if is_pair(given) else batch


def is_pair(batch: Any) -> bool:
    return type(batch) in (tuple, list) and len(batch) == 2


def answers(outputs: Any) -> Mapping[str, torch.Tensor]:
    """What a model returned, as methods take it: in full precision."""
    return {"logits": logits_of(outputs).float()}


def collate(items: Sequence[Any]) -> dict[str, Any]:
    """A batch by names from items of a data set: mappings, or pairs of image and label."""
    if not is_pair(items[0]):
        return default_data_collator(list(items))
    return {IMAGES: torch.stack([image for image, _ in items]), LABELS: torch.tensor([int(y) for _, y in items])}


def training_data(data: Any) -> TrainingData:
    """The data that a user gave: a data set, or [`~training.embedding.TrainingData`] with a collator of its own."""
    return data if isinstance(data, TrainingData) else TrainingData(data, collate)
