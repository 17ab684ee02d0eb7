"""
Undoes how a suspect stores a weight: codes with scales and zero points, tensor types of other libraries, other orders of the axes.

Only what can be told from the tensors themselves is undone; everything else is named, never guessed.
"""

import math
from collections.abc import Mapping

import torch

from ..serialization import UnreadableFormat, shown
from .sharding import full_parameter
from .stored.packed import group_size


FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Stored types whose numbers are the weights, as in `FLOATS`.
PLAIN = {"F64", "F32", "F16", "BF16"}
# Where libraries put what a weight's codes have to be multiplied by, and what is subtracted first. `{0}` is the weight's name,
# `{1}` its module's.
SCALES = (
    "{0}_scale",
    "{0}_scale_inv",
    "{0}_scales",
    "{0}.scale",
    "{0}.scales",
    "{1}.scale",
    "{1}.scales",
    "{1}_scale",
    "{1}.scale_weight",
)
ZEROS = ("{0}_zero_point", "{0}_zero_points", "{0}_zeros", "{0}.zero_point", "{0}.zeros", "{1}.zero_point", "{1}.zeros", "{1}_zero_point")  # fmt: skip


def beside(name: str, spellings: tuple[str, ...], names: Mapping[str, object]) -> str | None:
    """Name of the tensor that goes with a weight, in one of these spellings."""
    module = name.rpartition(".")[0]
    return next((other for text in spellings if (other := text.format(name, module)) in names), None)


def read_float(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """
    A tensor as numbers: gathered, dequantised and dense, in a float type. One that is an ordinary float tensor is returned itself.

    Raises:
        [`~serialization.UnreadableFormat`]: when its numbers cannot be told; the message names the format.
    """
    tensor = full_parameter(tensors[name])
    if tensor.device.type == "meta":
        raise UnreadableFormat(f"{shown(name)} has no values here (meta device); load the model's weights first")
    if tensor.is_quantized or type(tensor).dequantize is not torch.Tensor.dequantize:
        return _plain(tensor, name)
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.dtype in FLOATS:
        return tensor
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_floating_point() and "float4" not in kind:
        return _scaled(tensor.float(), tensors, name, kind)
    if tensor.dtype in (torch.int8, torch.uint8, torch.int16, torch.int32):
        return _decoded(tensor, tensors, name, kind)
    raise UnreadableFormat(
        f"{shown(name)} is stored as {kind}, which is no weight; give the suspect in float32 or bfloat16"
    )


def is_plain(dtype: str | None) -> bool:
    """Whether rows of a tensor of this stored type mean something without another tensor beside it."""
    return dtype is None or dtype in PLAIN


def _plain(tensor: torch.Tensor, name: str) -> torch.Tensor:
    try:
        plain = tensor.detach().dequantize()
    except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
        raise UnreadableFormat(
            f"{shown(name)} is a {type(tensor).__name__}, which does not say what its weights are ({str(error)[:80]}); dequantise the "
            "model first"
        ) from None
    return plain if plain.dtype in FLOATS else plain.float()


def _decoded(codes: torch.Tensor, tensors: Mapping[str, torch.Tensor], name: str, kind: str) -> torch.Tensor:
    """(code - zero point) x scale."""
    scale, zero = beside(name, SCALES, tensors), beside(name, ZEROS, tensors)
    if scale is None:
        raise UnreadableFormat(
            f"{shown(name)} holds {kind} codes and no scale stands beside it ({shown(name)}_scale, ...); give the suspect dequantised"
        )
    if zero is None and not kind.startswith("int"):
        raise UnreadableFormat(
            f"{shown(name)} holds {kind} codes and no zero point stands beside it; give the suspect dequantised"
        )
    numbers = codes.float()
    if zero is not None:
        numbers = numbers - _spread(tensors[zero], tuple(codes.shape), zero)
    return numbers * _spread(tensors[scale], tuple(codes.shape), scale)


def _scaled(numbers: torch.Tensor, tensors: Mapping[str, torch.Tensor], name: str, kind: str) -> torch.Tensor:
    """float8 weights are often plain, and often stand beside a scale that belongs to them or to their inputs."""
    scale = beside(name, SCALES, tensors)
    if scale is None:
        return numbers
    factors = _spread(tensors[scale], tuple(numbers.shape), scale)
    if not (factors > 0).all():
        raise UnreadableFormat(
            f"{shown(name)} is {kind}, and {shown(scale)} beside it is not positive; give the suspect dequantised"
        )
    return numbers * factors


def _spread(factors: torch.Tensor, shape: tuple[int, ...], name: str) -> torch.Tensor:
    """One number per tensor, row, entry or block of a matrix, as `[...]` that broadcasts to `shape`."""
    factors = full_parameter(factors).float()
    rows, columns = shape[0], math.prod(shape[1:])
    if factors.numel() == 1:
        return factors.reshape(())
    # `[1, n]` belongs to the columns, for whoever multiplies by it as it is.
    for_columns = tuple(factors.shape) == (1, columns) and rows == columns
    if factors.numel() == rows and max(factors.shape) == rows and not for_columns:
        return factors.reshape(rows, *[1] * (len(shape) - 1))
    if tuple(factors.shape) == shape:
        return factors
    if factors.ndim == 2 and not for_columns:
        sizes = [group_size(size, count) for size, count in zip((rows, columns), factors.shape, strict=True)]
        for axis, (size, whole) in enumerate(zip(sizes, (rows, columns), strict=True)):
            if size is not None:
                factors = factors.repeat_interleave(size, dim=axis).narrow(axis, 0, whole)
        if None not in sizes:
            return factors.reshape(shape)
    raise UnreadableFormat(
        f"{shown(name)} of shape {list(factors.shape)} does not say which of {list(shape)} codes it scales"
    )
