"""
Which constants of an ONNX graph are weights, whose, and how the graph dequantises and transposes them.

Exporters keep the names of parameters where they can. Matrices that they transpose, and convolutions into which they fold a normalisation, get
names that say nothing; there the name of the node or its recorded scopes say which layer it is.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...serialization import UnreadableFormat, shown
from ..families import Shape
from ..stored.packed import by_group, unpack


Read = Callable[[Any], torch.Tensor]
SCOPES = "pkg.torch.onnx.name_scopes"
# Names that exporters make up.
MADE_UP = re.compile(
    r"(?:onnx::)?(?:val|MatMul|Conv|Gemm|const|Constant|initializer)?_?\d+(?:_quantized)?|_?(?:to_copy|t|transpose|permute)(?:_\d+)?"
)
TYPES = {
    1: "F32",
    10: "F16",
    11: "F64",
    16: "BF16",
    2: "U8",
    3: "I8",
    4: "U16",
    5: "I16",
    6: "I32",
    7: "I64",
    9: "BOOL",
    12: "U32",
    13: "U64",
}
FLOATS = ("F32", "F16", "F64", "BF16")


@dataclass(frozen=True)
class Constant:
    """
    One constant as a weight.

    Args:
        shape (`tuple[int, ...]`): As a layer of torch has it: `[out, in, ...]`.
        kind (`str`): Stored type of plain numbers; else the name of its format.
        form (`str`): Name of the format; empty for plain numbers.
        read (`Callable`): From a reader of stored constants to the weight.
    """

    shape: Shape
    kind: str
    form: str
    read: Callable[[Read], torch.Tensor]


def constants_of(graph: Any) -> dict[str, Constant]:
    """By name; of two that would have the same name the first."""
    stored = {item.name: item for item in graph.initializer}
    found: dict[str, Constant] = {}
    used: set[str] = set()
    for name, constant, spent in _weights_of(graph, stored):
        if name not in found:
            found[name] = constant
            used |= spent
    plain = {name: _plain(item) for name, item in stored.items() if name not in used and name not in found}
    return found | plain


def _plain(item: Any) -> Constant:
    kind = TYPES.get(item.data_type, f"type {item.data_type} of ONNX")
    return Constant(tuple(item.dims), kind, "", lambda read: read(item))


def _weights_of(graph: Any, stored: dict[str, Any]) -> Iterator[tuple[str, Constant, set[str]]]:
    """Name, constant and the stored constants that it is made of, for each that a layer multiplies with."""
    dequantised = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear" and node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm", "ConvTranspose") and len(node.input) > 1:
            source = dequantised.get(node.input[1])
            if node.input[1] in stored:
                item = stored[node.input[1]]
                yield _name_of(item.name, node), _turned(_plain(item), node), {item.name}
            elif (
                source is not None
                and source.input[0] in stored
                and len(source.input) > 1
                and source.input[1] in stored
            ):
                parts = [stored[name] for name in source.input if name in stored]
                yield (
                    _name_of(source.input[0], node),
                    _turned(_affine(source, parts), node),
                    {part.name for part in parts},
                )
        elif (
            node.op_type in ("QLinearConv", "QLinearMatMul")
            and len(node.input) > 5
            and all(name in stored for name in node.input[3:6])
        ):
            parts = [stored[name] for name in node.input[3:6]]
            axis = 0 if node.op_type == "QLinearConv" else 1
            yield _name_of(parts[0].name, node), _turned(_codes(parts, axis), node), {part.name for part in parts}
        elif node.op_type in ("MatMulInteger", "ConvInteger") and len(node.input) > 1 and node.input[1] in stored:
            yield _integer(node, stored)
        elif node.op_type == "MatMulNBits" and len(node.input) > 2 and all(name in stored for name in node.input[1:3]):
            parts = [stored[name] for name in node.input[1:5] if name in stored]
            yield _name_of(parts[0].name, node), _packed(node, parts), {part.name for part in parts}


def _name_of(stored: str, node: Any) -> str:
    """The parameter's own name where the exporter kept it, else that of the layer."""
    own = re.sub(r"_(?:quantized|Q4|DequantizeLinear.*)$", "", stored)
    if not MADE_UP.fullmatch(own):
        return own
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
    if scopes is not None and len(scopes) < 10_000:
        try:
            listed = ast.literal_eval(scopes)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            listed = []
        if isinstance(listed, list) and len(listed) > 1 and isinstance(listed[-2], str) and listed[-2]:
            return f"{listed[-2]}.weight"
    parts = [part for part in node.name.split("/") if part][:-1]
    # `layer/layer.0`: a list of layers, and one of them.
    kept = [part for part, after in zip(parts, [*parts[1:], ""], strict=True) if not after.startswith(f"{part}.")]
    return f"{'.'.join(kept)}.weight" if kept else own


def _attributes(node: Any) -> dict[str, int]:
    return {item.name: item.i for item in node.attribute}


def _turned(constant: Constant, node: Any) -> Constant:
    """`[in, out]` of a product as the `[out, in]` of a linear layer."""
    across = "MatMul" in node.op_type or (node.op_type == "Gemm" and not _attributes(node).get("transB", 0))
    if not across or len(constant.shape) != 2:
        return constant
    return Constant(constant.shape[::-1], constant.kind, constant.form, lambda read: constant.read(read).T)


def _affine(node: Any, parts: list[Any]) -> Constant:
    settings = _attributes(node)
    return _codes(parts, settings.get("axis", 1), settings.get("block_size", 0))


def _codes(parts: list[Any], axis: int, block: int = 0) -> Constant:
    """`(code - zero point) x scale`, one for all, for each place along an axis, or for blocks along it."""
    shape, form = tuple(parts[0].dims), "integers of ONNX"
    axis = axis % max(1, len(shape))

    def read(get: Read) -> torch.Tensor:
        numbers = get(parts[0]).float()
        if len(parts) > 2:
            numbers = numbers - _along(get(parts[2]).float(), shape, axis, block)
        return numbers * _along(get(parts[1]).float(), shape, axis, block)

    return Constant(shape, form, form, read)


def _along(factors: torch.Tensor, shape: Shape, axis: int, block: int) -> torch.Tensor:
    if factors.numel() == 1:
        return factors.reshape(())
    if block:
        if (
            not 0 < block <= shape[axis]
            or factors.ndim != len(shape)
            or factors.shape[axis] != -(-shape[axis] // block)
        ):
            raise UnreadableFormat(
                f"blocks of {block} codes with {list(factors.shape)} factors do not fit {list(shape)} codes"
            )
        return factors.repeat_interleave(block, dim=axis).narrow(axis, 0, shape[axis])
    return factors.reshape([-1 if place == axis else 1 for place in range(len(shape))])


def _integer(node: Any, stored: dict[str, Any]) -> tuple[str, Constant, set[str]]:
    """Codes of dynamic quantisation: the graph multiplies with their scale later, and only names say which that is."""
    item = stored[node.input[1]]
    name, former = _name_of(item.name, node), item.name.removesuffix("_quantized")
    zero = node.input[3] if len(node.input) > 3 else f"{former}_zero_point"
    if f"{former}_scale" not in stored or zero not in stored:

        def fail(read: Read) -> torch.Tensor:
            raise UnreadableFormat(
                f"{shown(item.name)} holds integers of ONNX, and its scale cannot be told; give the suspect dequantised"
            )

        return (
            name,
            _turned(Constant(tuple(item.dims), "integers of ONNX", "integers of ONNX", fail), node),
            {item.name},
        )
    parts = [item, stored[f"{former}_scale"], stored[zero]]
    return (
        name,
        _turned(_codes(parts, 1 if node.op_type == "MatMulInteger" else 0), node),
        {part.name for part in parts},
    )


def _packed(node: Any, parts: list[Any]) -> Constant:
    """`MatMulNBits`: `[out, blocks, bytes]` with a scale for each block, and zero points that are packed, numbers, or the middle."""
    settings, form = _attributes(node), "packed integers of ONNX (MatMulNBits)"
    rows, columns, bits, size = (settings.get(key, 0) for key in ("N", "K", "bits", "block_size"))

    def read(get: Read) -> torch.Tensor:
        # An order of the columns would be a fourth part.
        sound = (
            bits in (2, 4, 8)
            and 16 <= size <= 2**16
            and not size % 16
            and len(parts) < 4
            and not list(node.input[4:5]) > [""]
        )
        if not sound or list(parts[0].dims) != [rows, -(-columns // size), size * bits // 8]:
            raise UnreadableFormat(f"{shown(parts[0].name)} is stored as {form}, in an arrangement that is not known")
        groups = -(-columns // size)
        codes = unpack(get(parts[0]).reshape(rows * groups, -1), bits, size).reshape(rows, groups * size)[:, :columns]
        scale = get(parts[1]).float().reshape(rows, groups)
        zero = torch.tensor(2.0 ** (bits - 1)).expand(rows, groups)
        if len(parts) == 3:
            stored = get(parts[2])
            packed = stored.dtype is torch.uint8
            zero = (
                unpack(stored.reshape(rows, -1), bits, groups).float()
                if packed
                else stored.float().reshape(rows, groups)
            )
        return (codes - by_group(zero, columns, form, size)) * by_group(scale, columns, form, size)

    return Constant((rows, columns), form, form, read)
