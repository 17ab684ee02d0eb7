"""Model folders of safetensors: which files hold the model, and its tensors read one at a time."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .documents import read_json
from .files import InvalidInput, naming, open_regular
from .kinds import MODEL, kind_of_names, names_in, other_weights, refusal
from .tensors import (
    HEADER_BYTES,
    TENSORS,
    WEIGHT_BYTES,
    NamedTensors,
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
ADAPTER = "adapter_model.safetensors"
# What stands before `.safetensors` in variants of one model, the best first; the model without such a word is the one that libraries load.
PRECISIONS = (
    "",
    "fp32",
    "float32",
    "non_ema",
    "ema",
    "bf16",
    "bfloat16",
    "fp16",
    "float16",
    "half",
    "fp8",
    "int8",
    "8bit",
    "int4",
    "4bit",
)
_VARIANT = re.compile(
    rf"(?P<stem>.*?)(?:\.(?P<variant>{'|'.join(PRECISIONS[1:])}))?(?:-\d{{5}}-of-\d{{5}})?\.safetensors", re.DOTALL
)
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")


class SafetensorsFolder(NamedTensors):
    """
    The tensors of a `.safetensors` file or model folder, as a mapping that reads one tensor at a time.

    All headers are checked on construction; values are read when asked for, as stored (no cast), on CPU.

    Args:
        path (`str` or `Path`): A `.safetensors` file, or a folder with `model.safetensors`, with
            `model.safetensors.index.json` and its shards, or with any `.safetensors` shards.
        max_bytes (`int`, *optional*, defaults to 16 GiB): Largest accepted sum of file sizes.
        partial (`bool`, *optional*, defaults to `False`): Accept a sharded model of which shards are missing.

    Attributes:
        left_out (`tuple[str, ...]`): Weight files beside those that are read, such as another precision of the model.
        lacking (`str`): Which shards are missing, in words; empty for none.
        infos (`dict[str, TensorInfo]`): Header entry of each tensor.
        shapes (`dict[str, tuple[int, ...]]`): Shape of each tensor.
        beside (`frozenset[str]`): Names of everything in the folder.
        dtypes (`dict[str, str]`): Stored type of each tensor, a key of `DTYPES` such as `"F32"`.

    Raises:
        [`InvalidInput`]: on construction when a file is missing or malformed or only pickled weights are there.
        [`UnreadableFormat`]: on reading a tensor of a type that cannot be read, with NaN or infinite values, or that two files hold.
    """

    def __init__(self, path: str | Path, max_bytes: int = WEIGHT_BYTES, partial: bool = False):
        self.path = Path(path)
        self.beside = frozenset(file.name for file in self.path.iterdir()) if self.path.is_dir() else frozenset()
        chosen = _weight_files(self.path)
        files = [(self.path if self.path.is_dir() else self.path.parent) / name for name in chosen.files]
        if chosen.lacking and not partial:
            raise InvalidInput(f"{self.path}: {said_of(chosen.lacking)}.")
        self.left_out, self.lacking = chosen.left_out, said_of(chosen.lacking)
        headers: dict[str, dict[str, TensorInfo]] = {}
        self._starts: dict[str, int] = {}
        for file in files:
            headers[file.name], self._starts[file.name] = read_safetensors_layout(file, max_bytes)
            max_bytes -= file.stat().st_size
        self.infos, names, self._twice = merge_headers(headers, chosen.weight_map, self.path)
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


class Chosen(NamedTuple):
    """
    Args:
        files (`tuple[str, ...]`): The weight files that hold the model, in order.
        weight_map (`Mapping[str, str]`, *optional*): Of an indexed model: the file of each tensor.
        left_out (`tuple[str, ...]`): Weight files beside them that may be the model as well.
        lacking (`tuple[str, ...]`): Shards that ought to be there and are not.
    """

    files: tuple[str, ...]
    weight_map: Mapping[str, str] | None = None
    left_out: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()


def _weight_files(path: Path) -> Chosen:
    """The safetensors files behind a path."""
    if not path.is_dir():
        return Chosen((path.name,))
    index, names = path / INDEX_NAME, names_in(path)
    lost = {
        name for name in names if name.endswith(".safetensors") and "/" not in name and not os.path.exists(path / name)
    }
    if lost and not any(name.endswith(".safetensors") and "/" not in name for name in names - lost):
        raise InvalidInput(
            f"{path / min(lost)}: is a link that leads nowhere; put the file itself there, or download it again."
        )
    return choose_weight_files(names - lost, lambda: read_json(index, HEADER_BYTES, allow_floats=True), path)


def choose_weight_files(names: Collection[str], read_index: Callable[[], dict[str, Any]], where: str | Path) -> Chosen:
    """
    Which files of a folder or repo hold the model: `model.safetensors`, or the shards that its index names, or all `.safetensors` files, of several
    precisions of one model the best.

    Args:
        names (`Collection[str]`): All file names; those in sub-folders contain a slash and are not chosen.
        read_index (`Callable`): Reads the content of `model.safetensors.index.json`.

    Raises:
        [`InvalidInput`]: when there is none, or the index breaks its format.
    """
    here = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    # An adapter that is loaded onto the model is told of by its config.
    spoken_of = {ADAPTER} if "adapter_config.json" in names else set()
    if "model.safetensors" in names:
        return Chosen(("model.safetensors",), None, other_weights(names, {"model.safetensors"} | spoken_of))
    weight_map, wanted = None, _one_precision([name for name in here if name != ADAPTER] or here)
    if INDEX_NAME in names:
        weight_map = read_index().get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InvalidInput(f"{where}: weight_map of {INDEX_NAME} must map tensor names to shard names.")
        for name in weight_map.values():
            if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or ".." in name:
                raise InvalidInput(
                    f"{where}: shard name {str(name)[:64]!r} in {INDEX_NAME} is not a plain .safetensors file name."
                )
        wanted = sorted(set(weight_map.values()))
    if len(wanted) > SHARDS:
        raise InvalidInput(f"{where}: {len(wanted)} shards, limit {SHARDS}.")
    chosen = tuple(name for name in wanted if name in here)
    if wanted and not chosen:
        raise InvalidInput(f"{where}: {said_of(wanted)}.")
    if not chosen:
        raise refusal(where, kind_of_names(names), MODEL)
    lacking = tuple(name for name in wanted if name not in here) or tuple(_gaps(chosen))
    return Chosen(chosen, weight_map, other_weights(names, {*chosen} | spoken_of), lacking)


def _one_precision(names: list[str]) -> list[str]:
    """Of files that differ in what stands between the name and its ending (`model.fp16.safetensors`), the best precision."""
    by_stem: dict[str, dict[str, list[str]]] = {}
    for name in names:
        match = _VARIANT.fullmatch(name)
        assert match is not None
        by_stem.setdefault(match["stem"], {}).setdefault(match["variant"] or "", []).append(name)
    best = (min(variants.items(), key=lambda item: PRECISIONS.index(item[0]))[1] for variants in by_stem.values())
    return sorted(name for files in best for name in files)


def _gaps(names: Iterable[str]) -> Iterator[str]:
    """Shards that the numbers of the others count, and that are not there."""
    counted = [match for name in names if (match := re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.safetensors", name))]
    for stem, count in sorted({(match[1], match[3]) for match in counted}):
        there = {int(match[2]) for match in counted if (match[1], match[3]) == (stem, count)}
        if int(count) <= SHARDS:
            yield from (
                f"{stem}-{number:05}-of-{count}.safetensors"
                for number in range(1, int(count) + 1)
                if number not in there
            )


def said_of(lacking: Collection[str]) -> str:
    """What to do about shards that are not there."""
    shown_names = ", ".join(list(lacking)[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
    return f"a part of the model is missing ({shown_names}): download it again" if lacking else ""
