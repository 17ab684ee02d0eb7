"""Safetensors from strangers: strict headers with limits, tensors read one at a time, digests of contents."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .documents import parse_json, read_json
from .files import InvalidInput, naming, open_regular


if TYPE_CHECKING:
    import torch

HEADER_BYTES = 8 * 2**20
WEIGHT_BYTES = 16 * 2**30
TENSORS = 20_000
RANK = 8
DIMENSION = 2**24
ELEMENTS = 2**31
SHARDS = 2_048

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
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


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
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_BYTES or length + 8 > status.st_size:
            raise InvalidInput(
                f"announces a header of {length} bytes in a file of {status.st_size} (header limit {HEADER_BYTES}); "
                "it is truncated or not a safetensors file."
            )
        return parse_safetensors_header(file.read(length), status.st_size - 8 - length)


class SafetensorsFolder(Mapping[str, "torch.Tensor"]):
    """
    The tensors of a `.safetensors` file or model folder, as a mapping that reads one tensor at a time.

    All headers are checked on construction; values are read when asked for, as stored (no cast), on CPU.

    Args:
        path (`str` or `Path`): A `.safetensors` file, or a folder with `model.safetensors`, with
            `model.safetensors.index.json` and its shards, or with any `.safetensors` shards.
        max_bytes (`int`, *optional*, defaults to 16 GiB): Largest accepted sum of file sizes.

    Attributes:
        infos (`dict[str, TensorInfo]`): Header entry of each tensor.
        shapes (`dict[str, tuple[int, ...]]`): Shape of each tensor.
        dtypes (`dict[str, str]`): Stored type of each tensor, a key of `DTYPES` such as `"F32"`.

    Raises:
        [`InvalidInput`]: on construction when a file is missing or malformed or only pickled weights are there; on
            reading a tensor with NaN or infinite values.
    """

    def __init__(self, path: str | Path, max_bytes: int = WEIGHT_BYTES):
        self.path = Path(path)
        files, weight_map = _weight_files(self.path)
        self.infos: dict[str, TensorInfo] = {}
        self._files: dict[str, Path] = {}
        for file in files:
            infos = read_safetensors_header(file, max_bytes)
            max_bytes -= file.stat().st_size
            for name, info in infos.items():
                if name in self.infos:
                    raise InvalidInput(f"{self.path}: tensor {name} is in {self._files[name].name} and {file.name}.")
                self.infos[name], self._files[name] = info, file
        if len(self.infos) > TENSORS:
            raise InvalidInput(f"{self.path}: holds {len(self.infos)} tensors, limit {TENSORS}.")
        if weight_map is not None and weight_map != {name: file.name for name, file in self._files.items()}:
            raise InvalidInput(f"{self.path}: model.safetensors.index.json does not match what the shards hold.")
        self.shapes = {name: info.shape for name, info in self.infos.items()}
        self.dtypes = {name: info.dtype for name, info in self.infos.items()}

    def __getitem__(self, name: str) -> "torch.Tensor":
        import torch
        from safetensors import SafetensorError, safe_open

        file = self._files[name]
        try:
            with safe_open(file, framework="pt") as handle:
                tensor = handle.get_tensor(name)
        except SafetensorError as error:
            raise InvalidInput(f"{file}: tensor {name} cannot be read ({error}).") from None
        if tensor.is_floating_point():
            # float8 has no isfinite of its own
            checked = tensor.to(torch.float32) if tensor.element_size() == 1 else tensor
            if not torch.isfinite(checked).all():
                raise InvalidInput(f"{file}: tensor {name} has NaN or infinite values.")
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.infos  # the inherited one would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)


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


def _weight_files(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The safetensors files behind a path and, for a sharded model, which tensor its index puts where."""
    if not path.is_dir():
        if path.suffix in _PICKLED:
            raise InvalidInput(f"{path}: {_why_no_pickle(path.name)}")
        return [path], None
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"], None
    index = path / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index, max_bytes=HEADER_BYTES, allow_floats=True).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InvalidInput(f"{index}: weight_map must map tensor names to shard names.")
        for name in weight_map.values():
            if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or ".." in name:
                raise InvalidInput(f"{index}: shard name {str(name)[:64]!r} is not a plain .safetensors file name.")
        names = sorted(set(weight_map.values()))
    else:
        weight_map, names = None, sorted(file.name for file in path.iterdir() if file.suffix == ".safetensors")
    if len(names) > SHARDS:
        raise InvalidInput(f"{path}: {len(names)} shards, limit {SHARDS}.")
    if not names:
        pickled = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLED)
        raise InvalidInput(f"{path}: " + (_why_no_pickle(pickled[0]) if pickled else "holds no .safetensors file."))
    return [path / name for name in names], weight_map


def _why_no_pickle(name: str) -> str:
    return (
        f"{name} is pickled, and reading a pickle can run code. Have the model saved as safetensors "
        "(save_pretrained does so) by somebody who trusts it."
    )
