"""Secrets and published files live apart: where a key folder may lie, and where it may not."""

import os
from collections.abc import Iterator
from pathlib import Path

from ..serialization import InvalidInput
from ..serialization.kinds import KEY_FILE
from .envelope import FORMAT, MAX_BYTES, unseal


POOL_FILE = "pool.safetensors"
MODEL_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "trainer_state.json")
# In the first line of a share of a secret, see `shares`.
SHARE_FORMAT = "hf-watermark/share/v1"
# An envelope says what it is in its first or last fields, on both sides of the long ciphertext.
END_BYTES = 4096
SECRET_MARKS = (FORMAT.encode(), SHARE_FORMAT.encode())
KINDS = {"owner": "an owner file (the private key of an owner)", "watermark-key": "a key"}


def model_around(folder: Path) -> Path | None:
    """The file that makes `folder`, or a folder above it, a model or checkpoint folder; `None` when there is none."""
    resolved = folder.resolve()
    places = (parent / name for parent in (resolved, *resolved.parents) for name in MODEL_FILES)
    return next((place for place in places if place.exists()), None)


def refuse_model_folder(place: Path, coming: Path | None = None) -> None:
    """
    Raises when the folder or file of a secret is inside a model or checkpoint folder.

    Args:
        coming (`Path`, *optional*): A model folder that is still to be written.
    """
    found = model_around(place)
    why = f"{found} exists" if found is not None else ""
    if coming is not None and coming.resolve() in (place.resolve(), *place.resolve().parents):
        why = f"the model goes to {coming}"
    if why:
        raise ValueError(
            f"{place} lies inside a model folder ({why}) and would be published with it; "
            "save it beside the model, for example in `keys/`"
        )


def refuse_keys_inside(folder: Path) -> None:
    """Raises when a key file lies in a folder that is about to be saved as a model, and so would be published with it."""
    for path in folder.rglob(KEY_FILE):
        raise ValueError(
            f"{path} is a secret inside the model folder {folder}; move it out, for example to `keys/`, and save again"
        )


def key_inside(folder: str | Path) -> Path | None:
    """
    A secret file somewhere inside a folder: a `key.json`, or a key, owner or backup file under any other name, known by the format that it
    names. Links are not followed, and archives are not opened.

    Returns:
        `Path`, *optional*: The first one in the order of names; `None` when there is none, or `folder` is no folder.
    """
    for path in _files_below(Path(folder)):
        if path.name.casefold() == KEY_FILE or is_envelope(path):
            return path
    return None


def kind_of_secret(path: Path) -> str:
    """What a secret file holds, in words; an encrypted one does not say."""
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES)
    if SECRET_MARKS[1] in raw:
        return "a share of a secret"
    try:
        return KINDS[unseal(raw, None)["kind"]]
    except (InvalidInput, KeyError, TypeError):
        return "a key" if path.name.casefold() == KEY_FILE else "a secret file (a key, an owner or a backup)"


def is_envelope(path: Path) -> bool:
    """Whether a file names a format of our secret files. Of a large one only the two ends are read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            read = file.read(MAX_BYTES if size <= MAX_BYTES else END_BYTES)
            if size > MAX_BYTES:
                file.seek(size - END_BYTES)
                read += file.read(END_BYTES)
            return any(mark in read for mark in SECRET_MARKS)
    except OSError:
        return False  # what we cannot read, we cannot publish either


def _files_below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(place) / name for name in sorted(names)):
            # No pipes and devices: opening one may wait for ever.
            if path.is_file() and not path.is_symlink():
                yield path
