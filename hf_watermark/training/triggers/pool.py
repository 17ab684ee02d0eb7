"""The pool: source images set aside from the training data, so that triggers made of them were never trained on."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset
from tqdm.auto import tqdm

from ...keys import SubKey
from .labels import read_row


Collator = Callable[[list[Any]], dict[str, Any]]


def image_count(dataset: Any) -> int:
    """
    Images of a map-style dataset.

    Raises:
        `ValueError`: when it is empty, or a stream.
    """
    try:
        length = len(dataset)
    except TypeError:
        raise ValueError(
            "the training data is a stream; black-box triggers need a map-style dataset (len and indexing)"
        ) from None
    if length == 0:
        raise ValueError("the training data set is empty; give at least a few images per class")
    return length


def collect_images(
    dataset: Any,
    collator: Collator,
    classes: Sequence[int],
    per_class: int,
    order: SubKey,
    skip: frozenset[int] = frozenset(),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Takes `per_class` images of each of `classes` from a map-style dataset, in an order drawn from a secret.

    Args:
        dataset:
            Anything with `len` and `[]`, whose items `collator` turns into `pixel_values` and `labels`.
        order ([`~keys.SubKey`]):
            Its stream `order` fixes which images are taken.
        skip (`frozenset[int]`):
            Rows that must not be taken.

    Returns:
        Images `[n, channels, height, width]` (float32), labels `[n]` and dataset rows `[n]` (int64), sorted by class.

    Raises:
        `ValueError`: when the dataset is empty, is a stream, holds too few images of a class, images of several sizes, or labels that name no
            class.
    """
    length = image_count(dataset)
    missing = dict.fromkeys(classes, per_class)
    taken: list[tuple[int, int, torch.Tensor]] = []
    with (
        undisturbed_random_state(),
        tqdm(total=per_class * len(missing), desc="trigger sources", leave=False, delay=2) as bar,
    ):
        for row in order.stream("order").permutations(1, length)[0].tolist():
            if not missing:
                break
            if row in skip:
                continue
            image, label = read_row(collator([dataset[row]]))
            if label in missing:
                taken.append((label, row, image))
                bar.update()
                missing[label] -= 1
                if missing[label] == 0:
                    del missing[label]
    if missing:
        label, count = next(iter(missing.items()))
        raise ValueError(
            f"class {label} lacks {count} of the {per_class} images that triggers need; add data of it, make a head without it, or lower "
            "`pool_per_class`, where the method has that, to 2 at the least"
        )
    sizes = {tuple(image.shape) for _, _, image in taken}
    if len(sizes) > 1:
        raise ValueError(
            f"the training images have several sizes, {min(sizes)} and {max(sizes)} among them; triggers need one: bring them to one size in "
            "the transform of the data"
        )
    taken.sort(key=lambda item: item[:2])
    labels, rows = (torch.tensor([item[place] for item in taken]) for place in (0, 1))
    return torch.stack([image for _, _, image in taken]), labels, rows


def spread_classes(classes: int, most: int) -> list[int]:
    """Which classes lend source images: all, or `most` of them evenly spaced."""
    count = min(classes, most)
    return [number * classes // count for number in range(count)]


def without_rows(dataset: Any, rows: Sequence[int]) -> Any:
    """The dataset without these rows (a `datasets.Dataset` stays one)."""
    drop = set(rows)
    keep = [row for row in range(len(dataset)) if row not in drop]
    # Where nobody has imported the library, this is none of its data sets.
    datasets: Any = sys.modules.get("datasets")
    if datasets is not None and isinstance(dataset, datasets.Dataset):
        return dataset.select(keep)
    return Subset(dataset, keep)


@contextmanager
def undisturbed_random_state() -> Iterator[None]:
    """Random augmentation may run while images are collected; training must not notice."""
    import random

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
