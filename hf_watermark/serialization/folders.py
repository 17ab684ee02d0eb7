"""Model folders of safetensors: which files hold the model, and its tensors read one at a time."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .documents import read_json
from .files import InvalidInput, naming, open_regular
from .kinds import MODEL, kind_of_names, names_in, refusal
from .tensors import (
    HEADER_BYTES,
    TENSORS,
    WEIGHT_BYTES,
    TensorInfo,
    UnreadableFormat,
    as_tensor,
    read_safetensors_layout,
    refuse_not_finite,
    shown,
)


if TYPE_CHECKING:
    import torch

SHARDS = 2_048
LARGE = 2**20
INDEX_NAME = "model.safetensors.index.json"
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")


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
        beside (`frozenset[str]`): Names of everything in the folder.
        dtypes (`dict[str, str]`): Stored type of each tensor, a key of `DTYPES` such as `"F32"`.

    Raises:
        [`InvalidInput`]: on construction when a file is missing or malformed or only pickled weights are there.
        [`UnreadableFormat`]: on reading a tensor of a type that cannot be read, with NaN or infinite values, or that two files hold.
    """

    def __init__(self, path: str | Path, max_bytes: int = WEIGHT_BYTES):
        self.path = Path(path)
        self.beside = frozenset(file.name for file in self.path.iterdir()) if self.path.is_dir() else frozenset()
        files, weight_map = _weight_files(self.path)
        headers: dict[str, dict[str, TensorInfo]] = {}
        self._starts: dict[str, int] = {}
        for file in files:
            headers[file.name], self._starts[file.name] = read_safetensors_layout(file, max_bytes)
            max_bytes -= file.stat().st_size
        self.infos, names, self._twice = merge_headers(headers, weight_map, self.path)
        folder = files[0].parent
        self._files = {tensor: folder / name for tensor, name in names.items()}
        self.shapes = {name: info.shape for name, info in self.infos.items()}
        self.dtypes = {name: info.dtype for name, info in self.infos.items()}

    def __getitem__(self, name: str) -> "torch.Tensor":
        info, data = self.stored(name)
        tensor = as_tensor(data, info, info.shape, name, self._files[name])
        refuse_not_finite(tensor, name, self._files[name])
        return tensor

    def document(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder, for what it may explain: empty where there is none, or no proper one."""
        try:
            return read_json(self.path / name, allow_floats=True) if name in self.beside else {}
        except InvalidInput:
            return {}

    def stored(self, name: str) -> tuple[TensorInfo, bytearray | mmap]:
        """Header entry and bytes of a tensor, whatever they mean."""
        refuse_twice(name, self._twice, self.path)
        info, file = self.infos[name], self._files[name]
        data = _room(info.end - info.begin)
        with naming(file), open_regular(file) as (opened, _):
            handle: Any = opened  # a buffered file, which reads into memory that is there already
            handle.seek(self._starts[file.name] + info.begin)
            # The library's own reader refuses a whole file for one type that it does not know.
            if handle.readinto(data) != len(data):  # type: ignore[attr-defined]
                raise InvalidInput(f"tensor {shown(name)} cannot be read: the file has become shorter.")
        return info, data

    def overwrite(self, name: str, tensor: "torch.Tensor") -> None:
        """
        Puts other numbers in the place of a tensor, in a folder of one's own that nobody else reads yet: this is not atomic.

        Args:
            tensor (`torch.Tensor`): Of the stored type and shape.
        """
        info, file = self.infos[name], self._files[name]
        data = tensor.detach().cpu().contiguous().numpy().tobytes()
        if len(data) != info.end - info.begin or tuple(tensor.shape) != info.shape:
            raise ValueError(f"{name}: {tuple(tensor.shape)} {tensor.dtype} does not fit {info.shape} {info.dtype}")
        with file.open("r+b") as opened:
            opened.seek(self._starts[file.name] + info.begin)
            opened.write(data)

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted(set(self._files.values()))

    def __contains__(self, name: object) -> bool:
        return name in self.infos  # the inherited one would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)


def _room(size: int) -> bytearray | mmap:
    # What lies on the heap stays with the process when it is freed: a model that is read part by part would end up there as a whole.
    return mmap(-1, size) if size >= LARGE else bytearray(size)


def merge_headers(
    headers: Mapping[str, dict[str, TensorInfo]], weight_map: Mapping[str, str] | None, where: str | Path
) -> tuple[dict[str, TensorInfo], dict[str, str], dict[str, list[str]]]:
    """
    All tensors of a model: their header entries, the file that holds each, and the files of those that cannot be told apart.

    Args:
        headers (`Mapping[str, dict[str, TensorInfo]]`): Entries by file name.
        weight_map (`Mapping[str, str]`, *optional*): What the index of a sharded model says: it decides where two files hold a tensor of
            one name. Else what the files hold counts, as for the libraries that load them.

    Raises:
        [`InvalidInput`]: when there are too many.
    """
    holders: dict[str, list[str]] = {}
    for file, entries in headers.items():
        for name in entries:
            holders.setdefault(name, []).append(file)
    if len(holders) > TENSORS:
        raise InvalidInput(f"{where}: holds {len(holders)} tensors, limit {TENSORS}.")
    chosen = {name: (weight_map or {}).get(name) for name in holders}
    files = {name: wanted if (wanted := chosen[name]) in held else held[0] for name, held in holders.items()}
    twice = {name: held for name, held in holders.items() if len(held) > 1 and chosen[name] not in held}
    return {name: headers[file][name] for name, file in files.items()}, files, twice


def refuse_twice(name: str, twice: Mapping[str, list[str]], where: str | Path) -> None:
    """Raises [`UnreadableFormat`] for a tensor that several files hold under one name."""
    if name in twice:
        raise UnreadableFormat(
            f"{where}: tensor {shown(name)} is in {' and '.join(twice[name][:3])}; leave one of the files, or add the index that says which."
        )


def _weight_files(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The safetensors files behind a path and, for a sharded model, which tensor its index puts where."""
    if not path.is_dir():
        return [path], None
    index = path / INDEX_NAME
    names, weight_map = choose_weight_files(
        names_in(path), lambda: read_json(index, HEADER_BYTES, allow_floats=True), path
    )
    return [path / name for name in names], weight_map


def choose_weight_files(
    names: Collection[str], read_index: Callable[[], dict[str, Any]], where: str | Path
) -> tuple[list[str], dict[str, str] | None]:
    """
    Which files of a folder or repo hold the model: `model.safetensors`, or the shards that its index names, or all `.safetensors` files.

    Args:
        names (`Collection[str]`): All file names; those in sub-folders contain a slash and are not looked at.
        read_index (`Callable`): Reads the content of `model.safetensors.index.json`.

    Returns:
        File names in order and, for an indexed model, the file of each tensor.

    Raises:
        [`InvalidInput`]: when there is none, or the index breaks its format.
    """
    if "model.safetensors" in names:
        return ["model.safetensors"], None
    weight_map = None
    chosen = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if INDEX_NAME in names:
        weight_map = read_index().get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InvalidInput(f"{where}: weight_map of {INDEX_NAME} must map tensor names to shard names.")
        for name in weight_map.values():
            if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or ".." in name:
                raise InvalidInput(
                    f"{where}: shard name {str(name)[:64]!r} in {INDEX_NAME} is not a plain .safetensors file name."
                )
        chosen = sorted(set(weight_map.values()))
    if len(chosen) > SHARDS:
        raise InvalidInput(f"{where}: {len(chosen)} shards, limit {SHARDS}.")
    if not chosen:
        raise refusal(where, kind_of_names(names), MODEL)
    return chosen, weight_map
