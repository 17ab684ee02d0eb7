"""Weights in an ONNX graph: its constants, under the names of the layers that use them, transposed and dequantised as the graph does it."""

import math
from pathlib import Path
from typing import Any

import torch

from ...serialization import InvalidInput, UnreadableFormat, shown
from ...serialization.files import naming, open_regular
from ...serialization.kinds import damaged
from ...serialization.tensors import ELEMENTS, NAME_CHARACTERS, RANK, TENSORS, NamedTensors, refuse_not_finite
from .onnx_doubts import doubt_of
from .onnx_graph import Constant, constants_of
from .wire import refuse_swollen


# What protobuf itself can hold; larger models keep their constants in files beside the graph.
GRAPH_BYTES = 2**31


class OnnxFile(NamedTensors):
    """
    The constants of an ONNX graph that its layers multiply with, read one at a time.

    Args:
        path (`Path`): The file. Constants that lie outside of it are read from files in the same folder, and from nowhere else.

    Attributes:
        shapes, dtypes (`dict`): As of [`~serialization.SafetensorsFolder`]; the type of a quantised weight is the name of its kind.
        forms (`str`): What it is, for people.
        doubt (`str`): Why the graph may compute with other weights than these.

    Raises:
        [`~serialization.InvalidInput`]: when it is damaged or breaks a limit.
        `ImportError`: without the package `onnx`.
    """

    def __init__(self, path: Path):
        self.path = path
        self.beside: frozenset[str] = frozenset()
        self.left_out: tuple[str, ...] = ()
        graph = _graph_of(path)
        try:
            found = constants_of(graph)
            self.doubt = doubt_of(graph)
        except (
            ValueError,
            TypeError,
            IndexError,
            KeyError,
            AttributeError,
        ) as error:  # of a graph that no checker has seen
            raise damaged(path, "ONNX", error) from None
        self._constants = {name: item for name, item in found.items() if _is_sound(name, item)}
        if len(self._constants) > TENSORS:
            raise InvalidInput(f"{path}: holds {len(self._constants)} constants, limit {TENSORS}")
        self.shapes = {name: item.shape for name, item in self._constants.items()}
        self.dtypes = {name: item.kind for name, item in self._constants.items()}
        codes = sorted({item.form for item in self._constants.values() if item.form})
        self.forms = f"ONNX ({', '.join(codes)})" if codes else "ONNX"

    def __getitem__(self, name: str) -> torch.Tensor:
        item = self._constants[name]
        try:
            tensor = item.read(self._stored)
        except (ValueError, TypeError, RuntimeError, IndexError, KeyError) as error:
            if isinstance(error, InvalidInput):
                raise
            raise UnreadableFormat(f"{self.path}: {shown(name)} cannot be read ({str(error)[:100]})") from None
        if tuple(tensor.shape) != item.shape:
            raise UnreadableFormat(
                f"{self.path}: {shown(name)} is {list(tensor.shape)}, and the graph says {list(item.shape)}"
            )
        refuse_not_finite(tensor, name, self.path)
        return tensor

    def _stored(self, item: Any) -> torch.Tensor:
        """The numbers of one constant as they are stored."""
        import onnx
        from onnx import numpy_helper

        if item.data_location == onnx.TensorProto.EXTERNAL:
            copy = onnx.TensorProto()
            copy.dims.extend(item.dims)
            copy.data_type, copy.raw_data = item.data_type, self._outside(item)
            item = copy
        numbers = numpy_helper.to_array(item)
        kind = str(numbers.dtype)
        if kind == "bfloat16":
            return torch.from_numpy(numbers.view("uint16").copy()).view(torch.bfloat16)
        if kind.startswith("float8"):
            return torch.from_numpy(numbers.view("uint8").copy()).view(getattr(torch, kind))
        return torch.from_numpy(
            (numbers.astype("int8") if kind in ("int4", "uint4", "int2", "uint2") else numbers).copy()
        )

    def _outside(self, item: Any) -> bytes:
        """Bytes of a constant that lies in another file: one of the same folder, no longer than its shape says."""
        told = {entry.key: entry.value for entry in item.external_data}
        name, offset = told.get("location", ""), int(told.get("offset") or 0)
        if not name or "/" in name or "\\" in name or name in (".", "..") or "\0" in name:
            raise UnreadableFormat(
                f"{self.path}: a constant lies at {shown(name)}, which is no file of the same folder"
            )
        size = -(-math.prod(item.dims) * _bits(item.data_type) // 8)
        if "length" in told and int(told["length"]) != size:
            raise UnreadableFormat(
                f"{self.path}: a constant of {size} bytes has {shown(told['length'])} in {shown(name)}"
            )
        with naming(self.path.parent / name), open_regular(self.path.parent / name) as (file, status):
            if offset < 0 or offset + size > status.st_size:
                raise InvalidInput(f"is shorter than the graph {self.path.name} says.")
            file.seek(offset)
            return file.read(size)


def _bits(kind: int) -> int:
    import onnx

    name = onnx.TensorProto.DataType.Name(kind)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 4
    return 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def _is_sound(name: str, item: Constant) -> bool:
    """Whether a constant may be a weight at all; names and sizes come from a stranger."""
    sizes = all(size > 0 for size in item.shape) and math.prod(item.shape) <= ELEMENTS
    return len(name) <= NAME_CHARACTERS and len(item.shape) <= RANK and sizes


def _graph_of(path: Path) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            f"{path} is an ONNX graph; reading it needs a package: pip install 'hf-watermark[onnx]'"
        ) from error
    with naming(path), open_regular(path) as (file, status):
        if status.st_size > GRAPH_BYTES:
            raise InvalidInput(f"has {status.st_size} bytes, limit {GRAPH_BYTES}.")
        data = file.read(GRAPH_BYTES)
    try:
        refuse_swollen(data)
        model = onnx.ModelProto()
        model.ParseFromString(data)
    except Exception as error:  # protobuf has a type of its own for what it cannot parse
        raise damaged(path, "ONNX", error) from None
    if not model.graph.initializer:
        raise damaged(path, "ONNX", "it holds no constants")
    return model.graph
