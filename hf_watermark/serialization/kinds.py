"""
What a file or folder is that is not what was asked for: told from its first bytes and its names alone, so nothing is ever loaded for it.

Every reader says in its own words what it expects; what lies there, and what to do with it, is said here once.
"""

import os
import re
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from .documents import JSON_BYTES, parse_json
from .files import InvalidInput, open_regular


class Kind(NamedTuple):
    """
    Args:
        what (`str`): What it is, as the end of a sentence about it.
        instead (`str`, *optional*): What to do with it, where that is more than to give what is expected.
        schema (`str`): Of a document of this library: what it calls itself.
    """

    what: str
    instead: str = ""
    schema: str = ""


# Files under one folder that are looked at.
MOST_NAMES = 10_000
MODEL = "a model in safetensors: the folder that `save_pretrained` wrote, or one .safetensors, .gguf or .onnx file"
KEY_FILE = "key.json"
KEY_DOCUMENT = "hf-watermark/keyfile/"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
ARCHIVES = {
    b"PK\x03\x04": "a zip archive", b"PK\x05\x06": "a zip archive", b"PK\x07\x08": "a zip archive", b"\x1f\x8b": "a gzip archive",
    b"\x1f\x9d": "a compressed file", b"BZh": "a bzip2 archive", b"\xfd7zXZ\x00": "an xz archive", b"\x5d\x00\x00": "an lzma archive",
    b"\x28\xb5\x2f\xfd": "a zstandard archive", b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!\x1a\x07": "a rar archive",
    b"\x04\x22\x4d\x18": "an lz4 archive", b"MSCF": "a cab archive", b"!<arch>\n": "an ar archive", b"070701": "a cpio archive",
}  # fmt: skip

_ORIGINAL = "Give the safetensors from which it was converted"
_TRUSTED = "Have the model saved as safetensors (`save_pretrained` does so) by somebody who trusts it"
_KEYS = "A key is given as its folder (--key), an owner file with --owner; `hf-watermark key import` restores a backup"
# By the first bytes.
_STARTS = {
    b"GGUF": Kind("is a GGUF file, for llama.cpp", _ORIGINAL),
    b"ggml": Kind("is a GGML file, for llama.cpp", _ORIGINAL),
    b"version https://git-lfs": Kind(
        "is a Git LFS pointer: the name of a file that was not fetched", "Run `git lfs pull` in its folder"
    ),
    b"\x89HDF\r\n\x1a\n": Kind("is an HDF5 file, of Keras or TensorFlow", _ORIGINAL),
    b"\x93NUMPY": Kind("is a numpy file", _ORIGINAL),
    b"PAR1": Kind("is a table of a data set (parquet)"),
    b"ARROW1": Kind("is a table of a data set (Arrow)"),
    b"\x89PNG": Kind("is a picture (PNG)"),
    b"\xff\xd8\xff": Kind("is a picture (JPEG)"),
    b"%PDF": Kind("is a PDF"),
    b"<!DOCTYPE": Kind("is a web page", "Download the file itself: on the Hub, with `hf download`"),
    b"<html": Kind("is a web page", "Download the file itself: on the Hub, with `hf download`"),
}
_NAMED = {
    ".onnx": Kind("is an ONNX graph", _ORIGINAL),
    ".tflite": Kind("is a TensorFlow Lite model", _ORIGINAL),
    ".gguf": Kind("is a GGUF file, for llama.cpp", _ORIGINAL),
    ".h5": Kind("is an HDF5 file, of Keras or TensorFlow", _ORIGINAL),
    ".keras": Kind("is a Keras model", _ORIGINAL),
    ".msgpack": Kind("is a Flax model", _ORIGINAL),
    ".pb": Kind("is a TensorFlow graph", _ORIGINAL),
    ".mlmodel": Kind("is a Core ML model", _ORIGINAL),
    ".engine": Kind("is a TensorRT engine", _ORIGINAL),
}
# Further endings under which libraries take weights.
_WEIGHTS = (
    ".safetensors",
    *PICKLED,
    *_NAMED,
    ".mlpackage",
    ".npz",
    ".ot",
    ".pdparams",
    ".pdiparams",
    ".ptl",
    ".torchscript",
    ".mar",
)
# What trainers keep beside a model and nobody loads as one, and the pool of a published statement.
_NO_MODEL = re.compile(
    r"(?:.*/)?(?:training_args\.bin|(?:optimizer|scheduler)(?:_\d+)?\.(?:pt|bin)|scaler\.pt|rng_state(?:_\d+)?\.pth|random_states_\d+\.pkl)"
    r"|watermark/pool\.safetensors"
)
_DOCUMENTS = {
    KEY_DOCUMENT: Kind("is a secret file (a key, an owner or a backup)", _KEYS),
    "hf-watermark/opening/": Kind("is an opening (one disclosed sub-key)", "It is given with --opening"),
    "hf-watermark/statement/": Kind(
        "is a published statement", "It is read inside its model: give that folder or repository with --statement"
    ),
    "hf-watermark/precommit/": Kind("is a published precommit", "It is read inside its model, beside the statement"),
    "hf-watermark/revocation/": Kind("is a revocation of a key", "It is given with --revocation"),
    "hf-watermark/": Kind("is a report or record of this library"),
}
_PARTS = {
    "model_type": Kind("is the config of a model, without its weights", "Give the folder that it lies in"),
    "weight_map": Kind("is the index of a model in several files", "Give the folder that it lies in"),
    "peft_type": Kind("is the config of an adapter", "Merge the adapter into its base model and save that"),
    "verdict": Kind("is the evidence of a check"),
}
_ADAPTER = "adapter_model.safetensors"
_MERGED = (
    "Merge it into its base model (`merge_and_unload` of peft), save the result with `save_pretrained`, and give that; or give the base that the "
    "key was made for (`base=`, --base)"
)


def _plain(name: str) -> str:
    """A stranger's name of a file as it may stand in a message: printable, and not too long."""
    return (name if name.isprintable() else ascii(name)[1:-1])[:100]


def pickled(name: str) -> Kind:
    return Kind(f"{_plain(name)} is pickled, and reading a pickle can run code", _TRUSTED)


def refusal(where: str | Path, kind: Kind, expected: str) -> InvalidInput:
    """The error of a reader that found something else."""
    return InvalidInput(f"{where}: {kind.what}; expected {expected}" + (f". {kind.instead}" if kind.instead else ""))


def damaged(path: str | Path, kind: str, why: object) -> InvalidInput:
    """The error of a reader of GGUF or ONNX files that could not make sense of one."""
    found = _NAMED[f".{kind.lower()}"]
    told = shown_text(f"{type(why).__name__}: {why}" if isinstance(why, Exception) else str(why))
    return refusal(path, Kind(f"{found.what}, and cannot be read ({told})", found.instead), MODEL)


def shown_text(text: str) -> str:
    """What a library says about a stranger's file: printable, in one line, and not too long."""
    return _plain(" ".join(text.split()))


def refuse_other_kinds(path: str | Path, expected: str, schema: str = "") -> None:
    """
    Raises [`InvalidInput`] where something lies at `path` that is known and is not wanted there. What is not known is left to the reader.

    Args:
        expected (`str`): What the reader reads, for people.
        schema (`str`, *optional*): How the documents that it reads call themselves.
    """
    kind = kind_at(path)
    if kind is not None and not (schema and kind.schema.startswith(schema)):
        raise refusal(path, kind, expected)


def kind_at(path: str | Path) -> Kind | None:
    """What lies there; `None` for nothing and for what is not known. Ask only about what is no readable safetensors file."""
    place = Path(path)
    if not place.is_dir():
        return _kind_of_file(place)
    names = names_in(place)
    weights = any(name.endswith(".safetensors") for name in names if "/" not in name)
    return kind_of_weights(names) or Kind("is the folder of a model") if weights else kind_of_names(names)


def names_in(folder: Path) -> frozenset[str]:
    """Names of everything in a folder and, with slashes, in the folders in it, the nearest ones first and [`MOST_NAMES`] at most."""
    found: dict[str, None] = {}
    waiting = deque([("", False)])
    while waiting:
        below, linked = waiting.popleft()
        for entry in sorted(_entries(folder / below), key=lambda entry: entry.name):
            if len(found) >= MOST_NAMES:
                return frozenset(found)
            found[below + entry.name] = None
            # A link may lead to where it came from, so only what lies right behind it is named.
            if not linked and is_folder(entry):
                waiting.append((f"{below}{entry.name}/", entry.is_symlink()))
    return frozenset(found)


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except PermissionError:
        return []


def is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def other_weights(names: Collection[str], chosen: Collection[str]) -> tuple[str, ...]:
    """
    The files of a folder or repository that may be its model as well as those that were chosen, whatever they are stored in: the nearest first.

    Args:
        names (`Collection[str]`): All files, those in sub-folders with slashes.
    """
    found = sorted(
        (
            name
            for name in names
            if name.lower().endswith(_WEIGHTS) and name not in chosen and not _NO_MODEL.fullmatch(name)
        ),
        key=lambda name: (name.count("/"), name),
    )
    return (*map(_plain, found), *([f"one of its {MOST_NAMES} files or more"] if len(names) >= MOST_NAMES else []))


def kind_of_weights(names: Collection[str]) -> Kind | None:
    """
    What a folder or repository is whose safetensors are probably not those of a model. Probably: a reader tries them first, since whoever
    publishes them chose the names.
    """
    here = {name for name in names if "/" not in name}
    if is_adapter(here):
        return Kind(f"holds a PEFT adapter ({_ADAPTER}) and not the model that it changes", _MERGED)
    return _KEY_FOLDER if KEY_FILE in here else None


def is_adapter(names: Collection[str]) -> bool:
    """Whether a folder or repository holds an adapter, and not the model that it changes."""
    return {name for name in names if name.endswith(".safetensors") and "/" not in name} == {_ADAPTER}


def kind_of_names(names: Collection[str]) -> Kind:
    """What a folder or repository is in which there are these files and no safetensors."""
    here = sorted(name for name in names if "/" not in name)
    for holds, describe in _FOLDERS:
        if hit := next((name for name in here if holds(name)), None):
            return describe(hit)
    below = sorted(names)
    if deeper := next((name for name in below if name.endswith(".safetensors")), None):
        return Kind(
            f"holds no model itself, but its folder {_plain(deeper.rpartition('/')[0])} does", "Give that folder"
        )
    if picture := next((name for name in below if name.lower().endswith((".png", ".jpg", ".jpeg"))), None):
        return Kind(f"is a folder of pictures ({_plain(picture)})")
    if not here:
        return Kind("is an empty folder")
    return Kind(f"holds only {', '.join(map(_plain, here[:3]))}" + (" ..." if len(here) > 3 else ""))


_KEY_FOLDER = Kind("is a key folder, and holds secrets", _KEYS)


def _part(name: str) -> Kind:
    kind = _NAMED[Path(name).suffix.lower()]
    return Kind(f"{_plain(name)} {kind.what}", kind.instead)


# In this order: what a folder is called by its first hit.
_FOLDERS: tuple[tuple[Callable[[str], bool], Callable[[str], Kind]], ...] = (
    (lambda name: name == KEY_FILE, lambda name: _KEY_FOLDER),
    (lambda name: name.lower().endswith(PICKLED), pickled),
    (lambda name: Path(name).suffix.lower() in _NAMED, _part),
    (
        lambda name: name == "model_index.json",
        lambda name: Kind("is a diffusers pipeline, which holds several models", "Give the folder of one of them"),
    ),
    (
        lambda name: name in ("dataset_info.json", "dataset_dict.json") or name.endswith((".parquet", ".arrow")),
        lambda name: Kind(f"is a data set ({_plain(name)})"),
    ),
    (lambda name: name == "config.json", lambda name: Kind("holds a config.json, and no weights in safetensors")),
)


def _kind_of_file(path: Path) -> Kind | None:
    try:
        with open_regular(path) as (file, status):
            head = file.read(JSON_BYTES)
    except InvalidInput:
        return None
    if not status.st_size:
        return Kind("is empty (0 bytes)", "Download or save it again")
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[4:8] == b"TFL3":
        return _NAMED[".tflite"]
    # A pickle of protocol 2 to 5; an archive of torch begins with the entry that holds one.
    if path.suffix.lower() in PICKLED or re.match(rb"\x80[\x02-\x05]", head) or b"/data.pkl" in head[:128]:
        return pickled(path.name)
    if path.suffix.lower() in _NAMED:
        return _NAMED[path.suffix.lower()]
    for start, words in ARCHIVES.items():
        if head.startswith(start):
            return Kind(f"is {words}", "Unpack it, and give the folder that was in it")
    return _kind_of_document(head) if head.lstrip()[:1] == b"{" and status.st_size <= JSON_BYTES else None


def _kind_of_document(raw: bytes) -> Kind | None:
    try:
        document = parse_json(raw, allow_floats=True)
    except InvalidInput:
        return None
    schema = str(document.get("schema", document.get("format", "")))[:100]
    for start, kind in _DOCUMENTS.items():
        if schema.startswith(start):
            return kind._replace(schema=schema)
    return next((kind for name, kind in _PARTS.items() if name in document), None)
