"""Layouts and pools that may come from a stranger: what every method checks of classes, images and labels."""

from collections.abc import Mapping
from typing import Any

import torch

from ...serialization import InvalidInput


MOST_PIXELS = 2**31
MOST_CHANNELS, MOST_SIDE = 512, 2**13
# Normalised pixels lie within a few units, raw ones within 65,535.
MOST_VALUE = 1e6
KINDS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)


def read_classes(layout: Mapping[str, Any], most: int = 10**6) -> int:
    """
    Number of classes of a layout.

    Raises:
        [`~serialization.InvalidInput`]: when there is none, or more than `most`.
    """
    classes = layout.get("classes")
    if type(classes) is not int or not 2 <= classes <= most:
        raise InvalidInput(f"layout: `classes` is {classes!r}, expected 2 to {most}")
    return classes


def read_source_classes(layout: Mapping[str, Any], classes: int, least: int) -> list[int]:
    """
    The classes that lend source images, `least` to 1000 different ones.

    Raises:
        [`~serialization.InvalidInput`]: when they are anything else.
    """
    sources = layout.get("source_classes")
    if not isinstance(sources, list) or not all(type(label) is int and 0 <= label < classes for label in sources):
        raise InvalidInput("layout: `source_classes` must be a list of labels")
    if not least <= len(set(sources)) == len(sources) <= 1000:
        raise InvalidInput(
            f"layout: `source_classes` holds {len(sources)} labels, expected {least} to 1000 different ones"
        )
    return sources


def pool_tensors(method: str, pool: Mapping[str, torch.Tensor], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """
    The named tensors of a method's pool: dense numbers on the CPU, finite, in a plain real type.

    Raises:
        [`~serialization.InvalidInput`]: when one is missing or of another kind.
    """
    found = {}
    for name in names:
        tensor = pool.get(f"{method}.{name}")
        if not isinstance(tensor, torch.Tensor):
            raise InvalidInput(f"the pool of `{method}` holds no `{name}`; give the key folder's pool")
        if tensor.layout is not torch.strided or tensor.device.type == "meta":
            raise InvalidInput(f"the pool of `{method}`: `{name}` is no plain tensor; give the key folder's pool")
        if tensor.dtype not in KINDS:
            raise InvalidInput(f"the pool of `{method}`: `{name}` has the type {tensor.dtype}, expected real numbers")
        if tensor.numel() > MOST_PIXELS:
            raise InvalidInput(f"the pool of `{method}`: `{name}` holds more than {MOST_PIXELS} numbers")
        if not tensor.float().isfinite().all():
            raise InvalidInput(f"the pool of `{method}`: `{name}` holds numbers that are not finite")
        found[name] = tensor
    return found


def check_images(method: str, images: torch.Tensor, labels: torch.Tensor) -> None:
    """
    Images `[n, channels, height, width]` of at least one pixel, and one whole number as label of each.

    Raises:
        [`~serialization.InvalidInput`]: when they are anything else.
    """
    shape = tuple(images.shape)
    fits = len(shape) == 4 and 0 not in shape and shape[1] <= MOST_CHANNELS and max(shape[2:]) <= MOST_SIDE
    if not fits or not images.is_floating_point():
        raise InvalidInput(
            f"the pool of `{method}` holds no images: `images` is {images.dtype} of shape {list(images.shape)}, expected floats "
            f"[n, channels, height, width] with at most {MOST_CHANNELS} channels and {MOST_SIDE} pixels a side"
        )
    if float(images.abs().max()) > MOST_VALUE:
        raise InvalidInput(f"the pool of `{method}` holds pixels beyond {MOST_VALUE:g}")
    if labels.dtype is not torch.int64 or labels.shape != images.shape[:1]:
        raise InvalidInput(
            f"the pool of `{method}` needs one whole number per image as label: `labels` is {labels.dtype} of shape "
            f"{list(labels.shape)}, expected int64 [{len(images)}]"
        )
