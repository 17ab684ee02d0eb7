"""Safetensors from strangers: strict headers with limits, and digests of contents."""

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .documents import parse_json
from .files import InvalidInput, naming, open_regular


if TYPE_CHECKING:
    import torch

HEADER_BYTES = 8 * 2**20
WEIGHT_BYTES = 16 * 2**30
TENSORS = 20_000
RANK = 8
DIMENSION = 2**24
ELEMENTS = 2**31

# Names of the safetensors format: bytes per element and name in torch.
DTYPES = {
    "BOOL": (1, "bool"),
    "U8": (1, "uint8"),
    "I8": (1, "int8"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"),
    "I16": (2, "int16"),
    "U16": (2, "uint16"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "I32": (4, "int32"),
    "U32": (4, "uint32"),
    "F32": (4, "float32"),
    "I64": (8, "int64"),
    "U64": (8, "uint64"),
    "F64": (8, "float64"),
}
_DTYPE_OF_TORCH = {torch_name: name for name, (_, torch_name) in DTYPES.items()}
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")


class TensorInfo(NamedTuple):
    """One entry of a safetensors header; `begin` and `end` count bytes from the start of the data, after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_safetensors_header(header: bytes, data_bytes: int) -> dict[str, TensorInfo]:
    """
    Checks the JSON header of a safetensors file: everything the library checks and what it lets through (repeated,
    overlong or path-like names, empty tensors, headers of any size).

    Args:
        header (`bytes`): The header without its 8-byte length.
        data_bytes (`int`): Size of the data that follows it.

    Returns:
        `dict[str, TensorInfo]`: Entries in the order of their data.

    Raises:
        [`InvalidInput`]: when the header breaks the format or a limit.
    """
    if not header.startswith(b"{"):
        raise InvalidInput("header does not start with '{'; this is not a safetensors file.")
    entries = parse_json(header, max_bytes=HEADER_BYTES, max_brackets=3 * TENSORS + 2)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidInput("__metadata__ must map strings to strings.")
    if not 1 <= len(entries) <= TENSORS:
        raise InvalidInput(f"holds {len(entries)} tensors, expected 1 to {TENSORS}.")
    infos = {name: _tensor_info(name, entry) for name, entry in entries.items()}
    infos = dict(sorted(infos.items(), key=lambda item: item[1].begin))
    position = 0
    for name, info in infos.items():
        if info.begin != position:
            raise InvalidInput(f"tensor {name}: data begins at {info.begin}, expected {position} (overlap or hole).")
        position = info.end
    if position != data_bytes:
        raise InvalidInput(f"holds {data_bytes} bytes of data, the header describes {position} (truncated or padded).")
    return infos


def read_safetensors_header(path: str | Path, max_bytes: int = WEIGHT_BYTES) -> dict[str, TensorInfo]:
    """
    Reads and checks the header of a safetensors file without touching its data.

    Args:
        path (`str` or `Path`): The file; symlinks are followed, as in the Hub cache.
        max_bytes (`int`, *optional*, defaults to 16 GiB): Largest accepted file.

    Returns:
        `dict[str, TensorInfo]`: Entries in the order of their data.

    Raises:
        [`InvalidInput`]: when the file is missing, truncated, too large or malformed.
    """
    with naming(path), open_regular(path) as (file, status):
        if status.st_size > max_bytes:
            raise InvalidInput(f"has {status.st_size} bytes, limit {max_bytes}.")
        length = header_length(file.read(8), status.st_size)
        return parse_safetensors_header(file.read(length), status.st_size - 8 - length)


def header_length(prefix: bytes, size: int) -> int:
    """
    Length of the JSON header that the first 8 bytes of a safetensors file of `size` bytes announce.

    Raises:
        [`InvalidInput`]: when it does not fit into the file or the limit.
    """
    length = int.from_bytes(prefix[:8], "little")
    if size < 8 or length > HEADER_BYTES or length + 8 > size:
        raise InvalidInput(
            f"announces a header of {length} bytes in a file of {size} (header limit {HEADER_BYTES}); "
            "it is truncated or not a safetensors file."
        )
    return length


def refuse_not_finite(tensor: "torch.Tensor", name: str, file: str | Path) -> None:
    """Raises [`InvalidInput`] when a tensor that was read from `file` holds NaN or infinite values."""
    import torch

    if tensor.is_floating_point():
        # float8 has no isfinite of its own
        checked = tensor.to(torch.float32) if tensor.element_size() == 1 else tensor
        if not torch.isfinite(checked).all():
            raise InvalidInput(f"{file}: tensor {name} has NaN or infinite values.")


def tensor_set_digest(tensors: Mapping[str, "torch.Tensor"]) -> str:
    """
    Digest of a set of tensors that does not depend on their names, their order, their shards or file metadata.

    SHA-256 over the sorted SHA-256 digests of `dtype:shape` (as in `F32:64,3,7,7`), a newline and the raw
    little-endian bytes of each tensor. A cast or a changed bit changes it.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): For example a `state_dict()` or a [`SafetensorsFolder`]. Tied weights
            count as often as they appear, so compare mappings of one kind.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    return hashlib.sha256(b"".join(sorted(_tensor_digest(tensor) for tensor in tensors.values()))).hexdigest()


def named_tensors_digest(tensors: Mapping[str, "torch.Tensor"]) -> str:
    """
    Digest of tensors *with* their names, independent of order, shards and file metadata.

    [`tensor_set_digest`] cannot see two tensors of one shape that changed places; this one can.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): For example a [`SafetensorsFolder`].

    Returns:
        `str`: 64 hexadecimal digits.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(hashlib.sha256(name.encode()).digest() + _tensor_digest(tensors[name]))
    return total.hexdigest()


def _tensor_digest(tensor: "torch.Tensor") -> bytes:
    import torch

    dtype = _DTYPE_OF_TORCH[str(tensor.dtype).removeprefix("torch.")]
    digest = hashlib.sha256(f"{dtype}:{','.join(map(str, tensor.shape))}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _tensor_info(name: str, entry: Any) -> TensorInfo:
    if not _TENSOR_NAME.fullmatch(name):
        raise InvalidInput(f"tensor name {name[:64]!r} is not 1 to 256 characters of A-Z a-z 0-9 _ . -")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidInput(f"tensor {name}: expected exactly dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InvalidInput(f"tensor {name}: dtype {str(dtype)[:64]!r} is not one of {', '.join(DTYPES)}.")
    if not _integers(shape) or len(shape) > RANK or not all(1 <= size <= DIMENSION for size in shape):
        raise InvalidInput(f"tensor {name}: shape must have at most {RANK} sizes from 1 to {DIMENSION}.")
    if not _integers(offsets) or len(offsets) != 2:
        raise InvalidInput(f"tensor {name}: data_offsets must be two integers.")
    elements = math.prod(shape)
    if elements > ELEMENTS:
        raise InvalidInput(f"tensor {name}: {elements} elements, limit {ELEMENTS}.")
    begin, end = offsets
    if end - begin != elements * DTYPES[dtype][0]:
        raise InvalidInput(f"tensor {name}: {end - begin} bytes of data do not fit shape {shape} of {dtype}.")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)  # bool is an int, too
