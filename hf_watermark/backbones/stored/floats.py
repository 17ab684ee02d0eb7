"""bitsandbytes, compressed-tensors and ModelOpt: codes that stand for numbers of a table, and packed integers with their shape beside them."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...serialization import InvalidInput, parse_json, shown
from .packed import CODES, Get, Headers, Parts, as_fp4, by_group, cannot, finite, is_shape, unpack, unreadable


# `bitsandbytes.functional.get_4bit_type`: its kernels use these, whatever table the file holds.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
)  # fmt: skip
_FP4 = tuple(value / 12 for value in (0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
TABLES = {"nf4": NF4, "fp4": (*_FP4, *(-value for value in _FP4))}
STATE_BYTES = 4096
Block = Annotated[int, Field(ge=1, le=2**20)]


class QuantState(BaseModel):
    """What bitsandbytes writes as JSON into a tensor of bytes."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    quant_type: Literal["nf4", "fp4"]
    blocksize: Block
    shape: Annotated[list[Annotated[int, Field(ge=1, le=2**24)]], Field(min_length=1, max_length=8)]
    nested_blocksize: Block | None = None
    nested_offset: Annotated[float, Field(gt=-1e9, lt=1e9)] = 0.0


def bitsandbytes_4bit(headers: Headers) -> Iterator[tuple[str, Parts]]:
    """`weight`, two codes a byte, the first in the high half; `weight.absmax` of each block, which may be codes itself."""
    for kind in TABLES:
        for name in headers.ending(f".quant_state.bitsandbytes__{kind}"):
            parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", f"quant_state.bitsandbytes__{kind}")
            names = headers.known(name, *(f"{name}.{part}" for part in parts))
            yield name, _bitsandbytes_4bit(headers, name, names, kind)


def _bitsandbytes_4bit(headers: Headers, name: str, names: tuple[str, ...], kind: str) -> Parts:
    form, told = f"{kind} codes of bitsandbytes", f"{name}.quant_state.bitsandbytes__{kind}"
    try:
        if math.prod(headers.shapes[told]) > STATE_BYTES or headers.dtypes[told] != "U8":
            raise InvalidInput("it is too long")
        state = QuantState.model_validate(
            parse_json(bytes(headers.get(told).cpu().flatten().tolist()), STATE_BYTES, allow_floats=True)
        )
    except (InvalidInput, ValidationError):
        return unreadable(name, form, names, "and what it says about itself cannot be read")
    shape = tuple(state.shape)
    needed = [name, f"{name}.absmax", f"{name}.quant_map"]
    nested = f"{name}.nested_absmax" in names
    needed += [f"{name}.nested_absmax", f"{name}.nested_quant_map"] if nested else []
    if (
        not {*needed} <= {*names}
        or not is_shape(shape)
        or state.quant_type != kind
        or nested != (state.nested_blocksize is not None)
    ):
        return unreadable(name, form, names, "and a part is missing", shape if is_shape(shape) else ())
    return Parts(form, shape, names, lambda get: _from_table(get, name, state, nested, form))


def _from_table(get: Get, name: str, state: QuantState, nested: bool, form: str) -> torch.Tensor:
    table, stored = torch.tensor(TABLES[state.quant_type]), get(f"{name}.quant_map").float().flatten().cpu()
    if stored.shape != table.shape or not (stored - table).abs().max() < 1e-3:
        raise cannot(name, form, "with another table than its kernels use, so which one is meant cannot be told")
    count, most = math.prod(state.shape), get(f"{name}.absmax").flatten().cpu()
    if nested:
        codes, names = most, (f"{name}.nested_quant_map", f"{name}.nested_absmax")
        values, largest = (finite(get(part).flatten().cpu(), part, form) for part in names)
        if codes.dtype is not torch.uint8 or len(values) != 256:
            raise cannot(name, form, "with scales in a form that is not known")
        assert state.nested_blocksize is not None
        most = (
            values[codes.long()] * _for_each(largest, state.nested_blocksize, len(codes), name, form)
            + state.nested_offset
        )
    # The bytes may be stored as numbers of any type.
    packed = get(name).detach().cpu().contiguous().view(torch.uint8).flatten()
    if len(packed) != -(-count // 2):
        raise cannot(name, form, f"with {len(packed)} bytes for {count} codes")
    numbers = torch.empty(len(packed), 2)
    numbers[:, 0], numbers[:, 1] = table[(packed >> 4).long()], table[(packed & 15).long()]
    return (
        numbers.flatten()[:count] * _for_each(finite(most, name, form), state.blocksize, count, name, form)
    ).reshape(state.shape)


def _for_each(factors: torch.Tensor, size: int, count: int, name: str, form: str) -> torch.Tensor:
    if len(factors) != -(-count // size):
        raise cannot(name, form, f"with {len(factors)} scales for {count} codes in blocks of {size}")
    return factors.repeat_interleave(size)[:count]


def bitsandbytes_8bit(headers: Headers) -> Iterator[tuple[str, Parts]]:
    """`weight` int8 with `SCB`, the largest number of each row."""
    for module in headers.ending(".SCB"):
        name, most, arranged = f"{module}.weight", f"{module}.SCB", f"{module}.weight_format"
        names, form = headers.known(name, most, arranged), "int8 codes of bitsandbytes"
        if name in headers.shapes and headers.dtypes[name] not in CODES:
            continue  # a plain weight
        if not headers.is_like(name, "I8") or math.prod(headers.shapes[most]) != headers.shapes[name][0]:
            yield name, unreadable(name, form, names, "and its codes and scales do not fit")
        else:
            yield name, _bitsandbytes_8bit(headers, name, most, arranged, names)


def _bitsandbytes_8bit(headers: Headers, name: str, most: str, arranged: str, names: tuple[str, ...]) -> Parts:
    form = "int8 codes of bitsandbytes"

    def read(get: Get) -> torch.Tensor:
        if arranged in names and get(arranged).any():
            raise cannot(name, form, "in an order for one kind of graphics card")
        return get(name).float() * finite(get(most), most, form).flatten()[:, None] / 127

    return Parts(form, headers.shapes[name], names, read)


def compressed_tensors(headers: Headers) -> Iterator[tuple[str, Parts]]:
    """`weight_packed` with `weight_scale`: integers in int32, or 4-bit floats in bytes."""
    for name in headers.codes("_packed"):
        packed, scale = f"{name}_packed", f"{name}_scale"
        parts = ("packed", "scale", "shape", "zero_point", "g_idx", "global_scale")
        names = headers.known(*(f"{name}_{part}" for part in parts))
        found = None
        if scale in names and headers.is_like(packed, "I32") and f"{name}_shape" in names:
            found = _packed_integers(headers, name, names)
        elif scale in names and headers.is_like(packed, "U8"):
            found = _packed_floats(headers, name, packed, names)
        yield (
            name,
            found
            or unreadable(name, "packed codes of compressed-tensors", names, "in an arrangement that is not known"),
        )
    for name in headers.ending(".weight_scale_2"):  # ModelOpt's NVFP4, under the weight's own name
        if headers.dtypes.get(f"{name}.weight") not in CODES:
            continue
        weight = f"{name}.weight"
        names = headers.known(weight, f"{weight}_scale", f"{weight}_scale_2", f"{name}.input_scale")
        found = _packed_floats(headers, weight, weight, names) if headers.is_like(weight, "U8") else None
        yield weight, found or unreadable(weight, "codes of ModelOpt", names, "in an arrangement that is not known")


def _packed_integers(headers: Headers, name: str, names: tuple[str, ...]) -> Parts | None:
    packed, scale, told, zero, order = (
        f"{name}_{part}" for part in ("packed", "scale", "shape", "zero_point", "g_idx")
    )
    (rows, words), factors = headers.shapes[packed], headers.shapes[scale]
    if (
        headers.shapes[told] != (2,)
        or headers.dtypes[told] not in ("I64", "I32")
        or len(factors) != 2
        or factors[0] not in (1, rows)
    ):
        return None
    shape = tuple(headers.get(told).tolist())
    fitting = [
        bits for bits in (1, 2, 4, 8) if shape[0] == rows and is_shape(shape) and -(-shape[1] * bits // 32) == words
    ]
    if len(fitting) != 1:
        return None
    [bits], columns, middle = fitting, shape[1], 2 ** (fitting[0] - 1)
    form = f"packed integers of compressed-tensors, {bits} bits"

    def read(get: Get) -> torch.Tensor:
        codes = unpack(get(packed), bits, columns).short() - middle
        scales = finite(get(scale), scale, form)
        groups = scales.shape[1]
        zeros = torch.zeros(1, groups, dtype=torch.int16)
        if zero in names:
            zeros = _packed_zeros(get(zero), bits, rows, groups, name, form)
        if order in names:
            group = get(order).long().flatten()
            if len(group) != columns or int(group.min()) < 0 or int(group.max()) >= groups:
                raise cannot(name, form, "with groups that are not there")
            return (codes - zeros[:, group]) * scales[:, group]
        return (codes - by_group(zeros, columns, zero)) * by_group(scales, columns, scale)

    return Parts(form, shape, names, read)


def _packed_zeros(stored: torch.Tensor, bits: int, rows: int, groups: int, name: str, form: str) -> torch.Tensor:
    if stored.dtype is torch.int32 and tuple(stored.shape) == (-(-rows * bits // 32), groups):
        return unpack(stored.T.contiguous(), bits, rows).T.short() - 2 ** (bits - 1)
    if stored.dtype is torch.int8 and tuple(stored.shape) == (rows, groups):
        return stored.short()
    raise cannot(name, form, f"with zero points of shape {list(stored.shape)}")


def _packed_floats(headers: Headers, name: str, packed: str, names: tuple[str, ...]) -> Parts | None:
    """NVFP4 has float8 scales of 16 numbers each and one for all of them; MXFP4 has powers of two of 32 numbers each."""
    scale, over, other = f"{name}_scale", f"{name}_global_scale", f"{name}_scale_2"
    if scale not in names or len(headers.shapes[scale]) != 2:
        return None
    rows, columns = headers.shapes[packed][0], 2 * headers.shapes[packed][1]
    kind, divided, multiplied = headers.dtypes[scale], over in names, other in names
    nvfp4 = (
        kind == "F8_E4M3"
        and divided != multiplied
        and headers.shapes[scale] == (rows, columns // 16)
        and not columns % 16
    )
    mxfp4 = (
        kind in ("U8", "F8_E8M0")
        and not divided
        and headers.shapes[scale] == (rows, columns // 32)
        and not columns % 32
    )
    if not (nvfp4 or mxfp4) or not is_shape((rows, columns)):
        return None
    form = "NVFP4" if nvfp4 else "MXFP4"
    form += " of ModelOpt" if multiplied else " of compressed-tensors"

    def read(get: Get) -> torch.Tensor:
        factors = get(scale)
        factors = (factors.float() - 127).exp2() if factors.dtype is torch.uint8 else finite(factors, scale, form)
        if nvfp4:
            whole = finite(get(over if divided else other), name, form)
            if whole.numel() != 1 or not (whole > 0).all():
                raise cannot(name, form, f"and {shown(over if divided else other)} is no positive number")
            factors = factors / whole.reshape(()) if divided else factors * whole.reshape(())
        return as_fp4(get(packed)) * by_group(factors, columns, scale)

    return Parts(form, (rows, columns), names, read)
