"""The data sets of a benchmark: what determines them, and the images themselves."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..digits import load_digits_data
from ..images import (
    ImagesInMemory,
    channel_statistics,
    files_digest,
    parquet_files,
    read_parquet_images,
    read_parquet_labels,
    synthetic_images,
)
from .config import DataSpec


SYNTHETIC_TRAIN, SYNTHETIC_TEST = 400, 200


@dataclass(frozen=True)
class LoadedData:
    """
    Args:
        train, test:
            Map-style data sets of `{"pixel_values": [channels, height, width], "labels": int}`.
        classes (`int`):
            Number of labels.
        shape (`tuple[int, int, int]`):
            Channels, height and width of an image.
    """

    train: Any
    test: Any
    classes: int
    shape: tuple[int, int, int]


def data_identity(spec: DataSpec) -> dict[str, Any]:
    """What determines the images: not where they lie. Files count by their SHA-256."""
    fixed: dict[str, Any] = {
        "train_images": spec.train_images,
        "test_images": spec.test_images,
        "augment": spec.augment,
    }
    if spec.source == "parquet":
        assert spec.folder is not None
        if spec.side is not None:
            fixed["side"] = spec.side
        fixed["sha256"] = _folder_digest(str(Path(spec.folder).resolve()))
    return {"source": spec.source, **fixed}


@cache
def _folder_digest(folder: str) -> str:
    return files_digest([*parquet_files(folder, "train"), *parquet_files(folder, "test")])


def load_data(spec: DataSpec) -> LoadedData:
    """
    Raises:
        [`~serialization.InvalidInput`]: when a folder does not hold what is needed.
    """
    train, test = _splits(spec)
    shape = tuple(train[0]["pixel_values"].shape)
    return LoadedData(train, test, class_count(spec), (shape[0], shape[1], shape[2]))


@cache
def class_count(spec: DataSpec) -> int:
    """Number of labels; no picture is decoded for it."""
    if spec.source == "parquet":
        assert spec.folder is not None
        return 1 + int(read_parquet_labels(spec.folder, "train", spec.train_images).max())
    return 1 + max(item["labels"] for item in _splits(spec)[0])


def _splits(spec: DataSpec) -> tuple[Any, Any]:
    if spec.source == "digits":
        train, test = load_digits_data("train"), load_digits_data("test")
    elif spec.source == "synthetic":
        train = synthetic_images(spec.train_images or SYNTHETIC_TRAIN, seed=1)
        test = synthetic_images(spec.test_images or SYNTHETIC_TEST, seed=2)
    else:
        assert spec.folder is not None
        images, labels = read_parquet_images(spec.folder, "train", spec.train_images)
        scale = channel_statistics(images)
        return (
            ImagesInMemory(images, labels, *scale, augment=spec.augment, side=spec.side),
            ImagesInMemory(*read_parquet_images(spec.folder, "test", spec.test_images), *scale, side=spec.side),
        )
    return train[: spec.train_images], test[: spec.test_images]
