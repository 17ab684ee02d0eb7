"""
Which constants of an ONNX graph are weights, whose, and how the graph dequantises and transposes them.

Exporters keep the names of parameters where they can. Matrices that they transpose, and convolutions into which they fold a normalisation, get
names that say nothing; there the name of the node or its recorded scopes say which layer it is.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
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
    """Name, constant and the stored constants that it is made of, for each that a layer multiplies with; then the others that are dequantised."""
    dequantised = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear" and node.output}
    biases = _Biases(graph, stored, dequantised)
    spent: set[str] = set()
    for node in graph.node:
        found = _weight_of(node, stored, dequantised)
        if found is not None:
            constant, parts = found
            spent.add(parts[0].name)
            yield _name_of(parts[0].name, node, biases), _turned(constant, node), {part.name for part in parts}
    for node in dequantised.values():
        parts = _parts_of(node, stored)
        if parts and parts[0].name not in spent:
            yield _own_name(parts[0].name), _affine(node, parts), {part.name for part in parts}


def _weight_of(node: Any, stored: dict[str, Any], dequantised: dict[str, Any]) -> tuple[Constant, list[Any]] | None:
    """What a layer multiplies with, and the stored constants that it is made of."""
    kind, given = node.op_type, list(node.input)
    if kind in ("Conv", "MatMul", "Gemm", "ConvTranspose") and len(given) > 1:
        if given[1] in stored:
            return _plain(stored[given[1]]), [stored[given[1]]]
        parts = _parts_of(dequantised[given[1]], stored) if given[1] in dequantised else []
        return (_affine(dequantised[given[1]], parts), parts) if parts else None
    if kind in ("QLinearConv", "QLinearMatMul") and len(given) > 5 and all(name in stored for name in given[3:6]):
        parts = [stored[name] for name in given[3:6]]
        return _codes(parts, 0 if kind == "QLinearConv" else 1), parts
    if kind in ("MatMulInteger", "ConvInteger") and len(given) > 1 and given[1] in stored:
        return _integer(node, stored)
    if kind == "MatMulNBits" and len(given) > 2 and all(name in stored for name in given[1:3]):
        parts = [stored[name] for name in given[1:5] if name in stored]
        return _packed(node, parts), parts
    return None


def _parts_of(node: Any, stored: dict[str, Any]) -> list[Any]:
    """Codes, scale and zero point of a `DequantizeLinear`; none where it dequantises what is computed."""
    names = [name for name in node.input if name]
    return [stored[name] for name in names] if len(names) > 1 and all(name in stored for name in names) else []


class _Biases:
    """What is added to what a layer computes: its bias has kept the name of the layer where the weight has not."""

    STEPS = ("Cast", "Mul", "Add", "DequantizeLinear", "QuantizeLinear", "Reshape")

    def __init__(self, graph: Any, stored: dict[str, Any], dequantised: dict[str, Any]):
        self.users: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.names = {name: name for name in stored} | {
            name: node.input[0] for name, node in dequantised.items() if node.input
        }

    def layer_of(self, node: Any) -> str:
        """Name of the layer that this product belongs to; empty where it cannot be told."""
        for _ in self.STEPS:
            users = self.users.get(node.output[0], []) if node.output else []
            if len(users) != 1 or users[0].op_type not in self.STEPS:
                return ""
            [node] = users
            biases = (
                [_own_name(self.names[name]) for name in node.input if name in self.names]
                if node.op_type == "Add"
                else []
            )
            if len(biases) == 1:
                return biases[0].removesuffix(".bias") if biases[0].endswith(".bias") else ""
        return ""


def _own_name(stored: str) -> str:
    """The name of a constant without what quantisers append to it."""
    return re.sub(r"_(?:quantized|Q4|DequantizeLinear.*)$", "", stored)


def _name_of(stored: str, node: Any, biases: _Biases) -> str:
    """The parameter's own name where the exporter kept it, else that of the layer."""
    own = _own_name(stored)
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
    if layer := biases.layer_of(node):
        return f"{layer}.weight"
    parts = [part for part in node.name.split("/") if part][:-1]
    # `layer/layer.0`: a list of layers, and one of them.
    kept = [part for part, after in zip_longest(parts, parts[1:], fillvalue="") if not after.startswith(f"{part}.")]
    return f"{'.'.join(kept)}.weight" if kept else own


def _attributes(node: Any) -> dict[str, int]:
    return {item.name: item.i for item in node.attribute}


def _turned(constant: Constant, node: Any) -> Constant:
    """`[in, out]` of a product as the `[out, in]` of a linear layer."""
    # The packed matrices of `MatMulNBits` are `[out, in]` as they are.
    across = node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul") or (
        node.op_type == "Gemm" and not _attributes(node).get("transB", 0)
    )
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


def _integer(node: Any, stored: dict[str, Any]) -> tuple[Constant, list[Any]]:
    """Codes of dynamic quantisation: the graph multiplies with their scale later, and only names say which that is."""
    item = stored[node.input[1]]
    former = item.name.removesuffix("_quantized")
    zero = node.input[3] if len(node.input) > 3 else f"{former}_zero_point"
    if f"{former}_scale" not in stored or zero not in stored:

        def fail(read: Read) -> torch.Tensor:
            raise UnreadableFormat(
                f"{shown(item.name)} holds integers of ONNX, and its scale cannot be told; give the suspect dequantised"
            )

        return Constant(tuple(item.dims), "integers of ONNX", "integers of ONNX", fail), [item]
    parts = [item, stored[f"{former}_scale"], stored[zero]]
    return _codes(parts, 1 if node.op_type == "MatMulInteger" else 0), parts


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
