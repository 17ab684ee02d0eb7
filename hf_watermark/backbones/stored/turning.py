"""Convolutions that are stored as `[out, height, width, in]` (MLX, TensorFlow Lite)."""

from collections.abc import Callable, Mapping

import torch

from ..families import Shape


# `[out, height, width, in]` to `[out, in, height, width]`.
CHANNELS_LAST = (0, 3, 1, 2)
Reader = Callable[[Mapping[str, torch.Tensor], str], torch.Tensor]


def is_turned(there: Shape, wanted: Shape) -> bool:
    return len(there) == 4 and tuple(there[axis] for axis in CHANNELS_LAST) == tuple(wanted)


def turned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.permute(CHANNELS_LAST) if tensor.ndim == 4 else tensor


def in_order_of(wanted: Mapping[str, Shape], there: Mapping[str, Shape], read: Reader) -> Reader:
    """
    A reader that brings convolutions into the order of axes of the wanted ones, where all of them are stored in the other one.

    Args:
        wanted, there (`Mapping[str, tuple[int, ...]]`): Shapes by the same names; other tensors may be in either.
    """
    pairs = [(there[name], tuple(shape)) for name, shape in wanted.items() if len(shape) == 4 and name in there]
    differing = [pair for pair in pairs if tuple(pair[0]) != pair[1]]
    # A kernel with as many inputs as it is wide, or of one input, may look alike both ways.
    if not differing or not all(is_turned(*pair) for pair in pairs):
        return read
    return lambda tensors, name: turned(read(tensors, name))
