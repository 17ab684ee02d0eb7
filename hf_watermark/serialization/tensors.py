"""
Safetensors from strangers: headers with limits, single tensors by their place in the file, and digests of contents.

What the bytes of a file may be is judged for the whole file: sizes, offsets, overlap. What a tensor may be (its name, its type, its values) is
judged only when that tensor is read, so that one that nobody needs hides nothing.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .documents import parse_json
from .files import InvalidInput, Unreadable, naming, open_regular
from .kinds import MODEL, refuse_other_kinds


if TYPE_CHECKING:
    import torch

HEADER_BYTES = 8 * 2**20
WEIGHT_BYTES = 16 * 2**30
TENSORS = 20_000
RANK = 8
ELEMENTS = 2**31
NAME_CHARACTERS = 1024
TYPE_CHARACTERS = 32

# Names of the safetensors format: bytes per element and name in torch.
DTYPES = {
    "BOOL": (1, "bool"),
    "U8": (1, "uint8"),
    "I8": (1, "int8"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"),
    "F8_E8M0": (1, "float8_e8m0fnu"),
    "F8_E4M3FNUZ": (1, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (1, "float8_e5m2fnuz"),
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
    "C64": (8, "complex64"),
}
# Several elements share a byte: bits per element. torch holds two of `F4` in one element of its own and has no `F6`.
PACKED = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_DTYPE_OF_TORCH = {torch_name: name for name, (_, torch_name) in DTYPES.items()} | {"float4_e2m1fn_x2": "F4"}


class UnreadableFormat(Unreadable):
    """A tensor that is needed is there, and its numbers cannot be told from what is stored. This says nothing about a mark."""


def shown(name: str) -> str:
    """A tensor's name as it may stand in a message: printable, and not too long."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= 120 else f"{text[:100]}... ({len(name)} characters)"


def dtype_name(tensor: "torch.Tensor") -> str:
    """The stored type of a tensor as safetensors calls it; empty for one that it cannot store."""
    return _DTYPE_OF_TORCH.get(str(tensor.dtype).removeprefix("torch."), "")


class NamedTensors(Mapping[str, "torch.Tensor"]):
    """Tensors that are read when they are asked for; their names and shapes are known before."""

    shapes: dict[str, tuple[int, ...]]

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # the inherited one would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class TensorInfo(NamedTuple):
    """One entry of a safetensors header; `begin` and `end` count bytes from the start of the data, after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_safetensors_header(header: bytes, data_bytes: int) -> dict[str, TensorInfo]:
    """
    Checks the JSON header of a safetensors file: everything the library checks and what it lets through (repeated and overlong names,
    headers of any size). A name may be any text, it never becomes a path; a type may be one that this version does not know.

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
    infos = dict(sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end)))
    position = 0
    for name, info in infos.items():
        if info.begin != position:
            raise InvalidInput(
                f"tensor {shown(name)}: data begins at {info.begin}, expected {position} (overlap or hole)."
            )
        position = info.end
    if position != data_bytes:
        what = "it is truncated, download or save it again" if data_bytes < position else "something was appended"
        raise InvalidInput(f"holds {data_bytes} bytes of data, the header describes {position}: {what}.")
    return infos


def read_safetensors_header(path: str | Path, max_bytes: int = WEIGHT_BYTES) -> dict[str, TensorInfo]:
    """[`read_safetensors_layout`] without the place of the data."""
    return read_safetensors_layout(path, max_bytes)[0]


def read_safetensors_layout(path: str | Path, max_bytes: int = WEIGHT_BYTES) -> tuple[dict[str, TensorInfo], int]:
    """
    Reads and checks the header of a safetensors file without touching its data.

    Args:
        path (`str` or `Path`): The file; symlinks are followed, as in the Hub cache.
        max_bytes (`int`, *optional*, defaults to 16 GiB): Largest accepted file.

    Returns:
        Entries in the order of their data, and the byte at which the data begins.

    Raises:
        [`InvalidInput`]: when the file is missing, truncated, too large or malformed.
    """
    try:
        with naming(path), open_regular(path) as (file, status):
            if status.st_size > max_bytes:
                raise InvalidInput(f"has {status.st_size} bytes, limit {max_bytes}.")
            length = header_length(file.read(8), status.st_size)
            return parse_safetensors_header(file.read(length), status.st_size - 8 - length), 8 + length
    except InvalidInput:
        refuse_other_kinds(path, MODEL)  # says what it is instead, where that can be told
        raise


def header_length(prefix: bytes, size: int) -> int:
    """
    Length of the JSON header that the first 8 bytes of a safetensors file of `size` bytes announce.

    Raises:
        [`InvalidInput`]: when it does not fit into the file or the limit.
    """
    length = int.from_bytes(prefix[:8], "little")
    if length > max(HEADER_BYTES, size):
        raise InvalidInput("is not a safetensors file: it begins with something else than the length of a header.")
    if size < 8 or length > HEADER_BYTES or length + 8 > size:
        raise InvalidInput(
            f"announces a header of {length} bytes in a file of {size} (header limit {HEADER_BYTES}); "
            "it is truncated, or no safetensors file: download or save it again."
        )
    return length


def refuse_not_finite(tensor: "torch.Tensor", name: str, file: str | Path) -> None:
    """Raises [`UnreadableFormat`] when a tensor that was read from `file` holds NaN or infinite values."""
    import torch

    if tensor.is_floating_point() or tensor.is_complex():
        if str(tensor.dtype) == "torch.float4_e2m1fn_x2":
            return  # has neither
        # float8 has no order of its own
        checked = tensor.to(torch.float32) if tensor.element_size() == 1 else tensor
        if tensor.is_complex():
            checked = torch.view_as_real(tensor)
        # The extremes, because NaN goes into both: that needs no second tensor of this size.
        if tensor.numel() and not torch.stack(torch.aminmax(checked)).isfinite().all():
            raise UnreadableFormat(f"{file}: tensor {shown(name)} has NaN or infinite values.")


def as_tensor(
    data: bytearray | memoryview | mmap, info: TensorInfo, shape: tuple[int, ...], name: str, file: str | Path
) -> "torch.Tensor":
    """
    The tensor of `shape` that these bytes of `file` hold.

    Raises:
        [`UnreadableFormat`]: when torch has no such type.
    """
    import torch

    torch_name = "float4_e2m1fn_x2" if info.dtype == "F4" else DTYPES.get(info.dtype, (0, ""))[1]
    dtype = getattr(torch, torch_name, None) if torch_name else None
    if dtype is None:
        raise UnreadableFormat(
            f"{file}: tensor {shown(name)} is stored as {info.dtype}, which cannot be read; give the suspect in float32, float16 or bfloat16."
        )
    if info.dtype == "F4" and shape:
        if shape[-1] % 2:  # two numbers share a byte, along the last axis
            raise UnreadableFormat(
                f"{file}: tensor {shown(name)} is stored as F4 with an odd last axis; give the suspect in float32"
            )
        shape = (*shape[:-1], shape[-1] // 2)
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


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
    return hashlib.sha256(b"".join(sorted(_digest_in(tensors, name) for name in tensors))).hexdigest()


def named_tensors_digest(tensors: Mapping[str, "torch.Tensor"]) -> str:
    """
    Digest of tensors *with* their names, independent of order, shards and file metadata.

    [`tensor_set_digest`] cannot see two tensors of one shape that changed places; this one can.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): For example a [`SafetensorsFolder`].

    Returns:
        `str`: 64 hexadecimal digits.
    """
    # Of weights that are put together when they are read, what is stored.
    tensors = getattr(tensors, "origin", tensors)
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(hashlib.sha256(name.encode()).digest() + _digest_in(tensors, name))
    return total.hexdigest()


def _digest_in(tensors: Mapping[str, "torch.Tensor"], name: str) -> bytes:
    # A file's own bytes: what is stored can be told apart even where it cannot be read as numbers.
    stored = getattr(tensors, "stored", None)
    if stored is not None:
        info, data = stored(name)
        return _digest(info.dtype, info.shape, data)
    return _tensor_digest(tensors[name], name)


def _tensor_digest(tensor: "torch.Tensor", name: str) -> bytes:
    import torch

    dtype = _DTYPE_OF_TORCH.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise InvalidInput(
            f"tensor {shown(name)} ({type(tensor).__name__}, {tensor.dtype}) cannot be stored as safetensors, so it has no digest."
        )
    shape = tuple(tensor.shape)
    if dtype == "F4" and shape:
        shape = (*shape[:-1], 2 * shape[-1])
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return _digest(dtype, shape, flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _digest(dtype: str, shape: tuple[int, ...], data: Any) -> bytes:
    digest = hashlib.sha256(f"{dtype}:{','.join(map(str, shape))}\n".encode())
    digest.update(data)
    return digest.digest()


def _tensor_info(name: str, entry: Any) -> TensorInfo:
    where = f"tensor {shown(name)}"
    if len(name) > NAME_CHARACTERS:
        raise InvalidInput(f"tensor name {name[:64]!r}... has {len(name)} characters, limit {NAME_CHARACTERS}.")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidInput(f"{where}: expected exactly dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not dtype.isprintable() or not 1 <= len(dtype) <= TYPE_CHARACTERS:
        raise InvalidInput(f"{where}: dtype {str(dtype)[:64]!r} is no name of a type.")
    if not _integers(shape) or len(shape) > RANK or not all(0 <= size <= ELEMENTS for size in shape):
        raise InvalidInput(f"{where}: shape must have at most {RANK} sizes from 0 to {ELEMENTS}.")
    if not _integers(offsets) or len(offsets) != 2:
        raise InvalidInput(f"{where}: data_offsets must be two integers.")
    elements = math.prod(shape)
    if elements > ELEMENTS:
        raise InvalidInput(f"{where}: {elements} elements, limit {ELEMENTS}.")
    begin, end = offsets
    bits = PACKED.get(dtype) or (8 * DTYPES[dtype][0] if dtype in DTYPES else None)
    # Of a type that is not known only that its bytes lie inside the file.
    if end < begin or (bits is not None and 8 * (end - begin) != elements * bits):
        raise InvalidInput(f"{where}: {end - begin} bytes of data do not fit shape {shape} of {dtype}.")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)  # bool is an int, too
