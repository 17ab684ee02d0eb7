"""GPTQ, AWQ, torchao and quanto: integer codes in groups of inputs."""

from collections.abc import Iterator

import torch

from ..families import Shape
from .packed import Get, Headers, Parts, by_group, cannot, finite, is_shape, unpack, unreadable


# AWQ's kernels want the codes of a word in this order.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
UNKNOWN = "in an arrangement that is not known"


def gptq_and_awq(headers: Headers) -> Iterator[tuple[str, Parts]]:
    """`qweight`, `qzeros`, `scales` and, of GPTQ, `g_idx`; which of the two it is follows from the shapes."""
    for module in headers.codes(".qweight"):
        names = headers.known(*(f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")))
        found = _gptq(headers, module, names) or _awq(headers, module, names)
        weight = f"{module}.weight"
        yield weight, found or unreadable(weight, "packed codes of GPTQ, AWQ or one of their kin", names, UNKNOWN)


def _gptq(headers: Headers, module: str, names: tuple[str, ...]) -> Parts | None:
    """Codes of consecutive inputs in a word: `qweight` `[in * bits / 32, out]`, `qzeros` `[groups, out * bits / 32]`."""
    weight, zeros, scales, order = (f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx"))
    if not (
        headers.is_like(weight, "I32") and headers.is_like(zeros, "I32") and headers.is_like(scales, "F16 BF16 F32")
    ):
        return None
    (words, rows), (groups, packed), shape = headers.shapes[weight], headers.shapes[zeros], headers.shapes[scales]
    bits = 32 * packed // max(1, rows)
    if shape != (groups, rows) or bits not in (2, 3, 4, 8) or rows * bits != 32 * packed:
        return None
    columns = 32 * words // bits
    ordered = headers.is_like(order, "I32 I64", 1)
    if 32 * words % bits or not groups or (order in headers.shapes) != ordered or not is_shape((rows, columns)):
        return None
    if ordered and headers.shapes[order] != (columns,):
        return None
    form = f"GPTQ, {bits} bits"

    def read(get: Get) -> torch.Tensor:
        codes = unpack(get(weight).T.contiguous(), bits, columns)
        zero = _zeros_of_gptq(unpack(get(zeros), bits, rows).T, bits, headers, module)
        scale = finite(get(scales), scales, form).T
        if ordered:
            group = get(order).long()
            if int(group.min()) < 0 or int(group.max()) >= groups:
                raise cannot(module, form, "with groups that are not there")
            return (codes - zero[:, group]) * scale[:, group]
        return (codes - by_group(zero, columns, zeros)) * by_group(scale, columns, scales)

    return Parts(form, (rows, columns), names, read)


def _zeros_of_gptq(stored: torch.Tensor, bits: int, headers: Headers, module: str) -> torch.Tensor:
    """Zero points, which the first version of the format stores less one."""
    middle = 2 ** (bits - 1)
    said = headers.said.get("checkpoint_format", "gptq" if headers.said.get("quant_method") == "gptq" else None)
    # Symmetric codes, which are usual, speak for themselves.
    if (stored == stored[0, 0]).all() and int(stored[0, 0]) in (middle - 1, middle):
        said = "gptq" if int(stored[0, 0]) == middle - 1 else "gptq_v2"
    if said not in ("gptq", "gptq_v2"):
        raise cannot(f"{module}.weight", "GPTQ", "and whether of its first or second version, nothing says")
    stored = stored.short()
    return stored if said == "gptq_v2" else (stored + 1) % 2**bits


def _awq(headers: Headers, module: str, names: tuple[str, ...]) -> Parts | None:
    """Codes of eight outputs in a word: `qweight` `[in, out / 8]`, `qzeros` `[groups, out / 8]`."""
    weight, zeros, scales = (f"{module}.{part}" for part in ("qweight", "qzeros", "scales"))
    if not (
        headers.is_like(weight, "I32") and headers.is_like(zeros, "I32") and headers.is_like(scales, "F16 BF16 F32")
    ):
        return None
    (columns, words), (groups, packed), shape = headers.shapes[weight], headers.shapes[zeros], headers.shapes[scales]
    rows = 8 * words
    if len(names) > 3 or packed != words or shape != (groups, rows) or not groups or not is_shape((rows, columns)):
        return None
    form = "AWQ, 4 bits"

    def read(get: Get) -> torch.Tensor:
        codes, zero = (_in_order(unpack(get(name), 4, rows)).T for name in (weight, zeros))
        scale = finite(get(scales), scales, form).T
        return (codes.short() - by_group(zero, columns, zeros)) * by_group(scale, columns, scales)

    return Parts(form, (rows, columns), names, read)


def _in_order(codes: torch.Tensor) -> torch.Tensor:
    groups = codes.reshape(len(codes), -1, 8)
    ordered = torch.empty_like(groups)
    ordered[..., list(AWQ_ORDER)] = groups
    return ordered.reshape(codes.shape)


def torchao(headers: Headers) -> Iterator[tuple[str, Parts]]:
    """`flatten_tensor_state_dict` writes a tensor `layer.weight` as `layer._weight_qdata`, `layer._weight_scale` ..."""
    for start in headers.codes("_qdata"):
        module, dot, leaf = start.rpartition("._")
        name = f"{module}.{leaf}" if dot else start.removeprefix("_")
        parts = (
            "qdata",
            "scale",
            "zero_point",
            "act_pre_scale",
            "scale_and_zero",
            "per_tensor_scale",
            "act_quant_scale",
        )
        others = ("act_per_tensor_scale", "act_quant_zero_point")
        names = headers.known(*(f"{start}_{part}" for part in (*parts, *others)))
        packed = {f"{start}_{part}" for part in ("scale_and_zero", "per_tensor_scale")} & {*names}
        plain = (
            headers.dtypes[f"{start}_qdata"] in ("I8", "F8_E4M3", "F8_E5M2")
            and f"{start}_scale" in names
            and not packed
        )
        shape = headers.shapes[f"{start}_qdata"]
        blocks = plain and _is_in_blocks(shape, headers.shapes[f"{start}_scale"])
        if blocks and is_shape(shape):
            yield name, _torchao(headers, start, names)
        else:
            yield name, unreadable(name, "packed codes of torchao", names, UNKNOWN)


def _torchao(headers: Headers, start: str, names: tuple[str, ...]) -> Parts:
    data, scale, zero, before = (f"{start}_{part}" for part in ("qdata", "scale", "zero_point", "act_pre_scale"))
    shape, form = headers.shapes[data], f"{headers.dtypes[data].lower()} codes of torchao"

    def read(get: Get) -> torch.Tensor:
        numbers = get(data).float()
        if zero in names:
            numbers = numbers - _in_blocks(finite(get(zero), zero, form), shape, zero)
        numbers = numbers * _in_blocks(finite(get(scale), scale, form), shape, scale)
        # What is multiplied to the inputs first belongs to the weights.
        return numbers * finite(get(before), before, form) if before in names else numbers

    return Parts(form, shape, names, read)


def _is_in_blocks(shape: Shape, factors: Shape) -> bool:
    return len(shape) == len(factors) and all(few and not many % few for many, few in zip(shape, factors, strict=True))


def _in_blocks(factors: torch.Tensor, shape: Shape, name: str) -> torch.Tensor:
    if factors.numel() == 1:
        return factors.reshape(())
    if not _is_in_blocks(shape, tuple(factors.shape)):
        raise cannot(name, "factors of torchao", f"{list(factors.shape)} for {list(shape)} codes")
    for axis, size in enumerate(shape):
        factors = factors.repeat_interleave(size // factors.shape[axis], dim=axis)
    return factors


def quanto(headers: Headers) -> Iterator[tuple[str, Parts]]:
    """`weight._data` and `weight._scale`; four bits and less lie in an order that only its own map tells."""
    for name in headers.codes("._data"):
        names = headers.known(*(f"{name}.{part}" for part in ("_data", "_scale", "_shift")))
        data, scale = f"{name}._data", f"{name}._scale"
        shape, form = headers.shapes[data], "codes of quanto"
        readable = headers.dtypes[data] in ("I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ") and names == (data, scale)
        if not readable or not is_shape(shape) or not _fits_rows(shape, headers.shapes[scale]):
            yield name, unreadable(name, "packed codes of quanto", names, UNKNOWN)
        else:
            yield name, _quanto(name, data, scale, shape, form)


def _fits_rows(shape: Shape, scale: Shape) -> bool:
    return all(size in (1, whole) for size, whole in zip(scale, shape, strict=False)) and len(scale) in (0, len(shape))


def _quanto(name: str, data: str, scale: str, shape: Shape, form: str) -> Parts:
    return Parts(form, shape, (data, scale), lambda get: get(data).float() * finite(get(scale), scale, form))
