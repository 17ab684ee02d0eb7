"""Which class a row of training data shows, and which kinds of labels say no class."""

from collections.abc import Mapping
from typing import Any

import torch


# A target distribution shows its largest class where that has more than half of it.
SHOWN = 0.5
CLASSES = "black-box marks need one class per image"


def read_row(batch: Any) -> tuple[torch.Tensor, int]:
    """
    Image `[channels, height, width]` and class of a collated batch of one row.

    Raises:
        `ValueError`: when the batch has no images, or labels of a kind that says no class.
    """
    for name, advice in (("pixel_values", "images are expected there"), ("labels", f"{CLASSES}, as whole numbers")):
        if not isinstance(batch, Mapping) or batch.get(name) is None:
            found = ", ".join(map(repr, batch)) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
            raise ValueError(f"the batches of the training data have no `{name}`, only {found}: {advice}")
    return torch.as_tensor(batch["pixel_values"])[0].float(), shown_class(torch.as_tensor(batch["labels"]))


def shown_class(labels: torch.Tensor) -> int:
    """
    The class that the labels of one row name: a whole number, or the largest of a distribution over the classes.

    Raises:
        `ValueError`: for labels of another kind: multi-label, regression, segmentation.
    """
    shape = tuple(labels.shape)
    if labels.numel() == 1 and not labels.is_floating_point():
        return int(labels)
    if len(shape) > 2:
        raise ValueError(
            f"`labels` of one row have the shape {shape}, as for segmentation; {CLASSES}: use a white-box mark"
        )
    if labels.numel() == 1:
        raise ValueError(f"`labels` are {labels.dtype}, as for regression; {CLASSES}: use a white-box mark")
    shares = labels.float().flatten()
    if bool((shares < 0).any()) or abs(float(shares.sum()) - 1) > 1e-3 or float(shares.max()) <= SHOWN:
        raise ValueError(
            f"`labels` of one row have the shape {shape} and are no distribution over the classes, as in multi-label data; {CLASSES}: use a "
            "white-box mark"
        )
    return int(shares.argmax())


def in_kind(classes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Class numbers `[n]` in the kind of `labels`: as they are, as a column `[n, 1]`, or as distributions `[n, classes]`."""
    if labels.numel() == len(labels):
        return classes.to(labels).reshape(-1, *labels.shape[1:])
    return torch.nn.functional.one_hot(classes, labels.shape[1]).to(labels)


__all__ = ["in_kind", "read_row", "shown_class"]
