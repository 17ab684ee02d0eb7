"""Which files of a model folder are published: known kinds, and those that the user names one by one."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..keys import BURNT_FILE
from ..keys.folders import KEY_FILE, POOL_FILE
from ..serialization import InvalidInput, parse_json, read_json
from ..serialization.folders import INDEX_NAME, choose_weight_files
from ..serialization.tensors import HEADER_BYTES
from .contents import (
    ARCHIVE_SUFFIXES,
    PICKLED_SUFFIXES,
    container,
    problem_of_image,
    problem_of_json,
    problem_of_text,
    problem_of_weights,
)
from .cost import COST
from .describe import CONFIG_BYTES, Content
from .precommit import FOLDER


CARD, SIGNATURE = "README.md", "model.sig"
CARD_BYTES = 2**20
# Up to this size a file is read once, and what was read is what is published.
FROZEN_BYTES = 16 * 2**20
# What `save_pretrained` of models and image processors, `timm.models.save_for_hf` and `trainer.save_metrics` write.
JSON_NAMES = frozenset(
    ("config.json", "adapter_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "generation_config.json",
     "all_results.json", "train_results.json", "eval_results.json", "test_results.json", "predict_results.json", INDEX_NAME)
)  # fmt: skip
LABELS = re.compile(r"(?:labels?|classes|class_names|label_names|id2label|label2id|synsets?)\.(txt|json)")
TERMS = re.compile(r"(?:LICENSE|LICENCE|NOTICE)(?:[._-][A-Za-z0-9._-]{1,40})?", re.IGNORECASE)
# As in the schema of statements.
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}(?:/[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}){0,3}")
IMAGES = (".png", ".jpg", ".jpeg")
KEY_NAMES = (KEY_FILE, POOL_FILE, BURNT_FILE)
LABEL_BYTES = 2**20
_LEFT_ALONE = (".", "_", "checkpoint-")

Problem = Callable[[Path], str | None]


@dataclass
class Selection:
    """
    Args:
        folder (`Path`): The model folder.
        files (`dict[str, Content]`): What is published, by its path in the repository; small files as the bytes that were read.
        skipped (`dict[str, str]`): What is not, and why.
        card (`str`, *optional*): The folder's own `README.md`.
        digests (`dict[str, str]`): SHA-256 of each published file as it lay in the folder.
    """

    folder: Path
    files: dict[str, Content] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    card: str | None = None
    digests: dict[str, str] = field(default_factory=dict)

    def take(self, name: str) -> None:
        path = self.folder / name
        if path.stat().st_size > FROZEN_BYTES or name.endswith(".safetensors"):
            self.files[name], self.digests[name] = path, sha256(path) or ""
        else:
            self.files[name] = raw = path.read_bytes()
            self.digests[name] = hashlib.sha256(raw).hexdigest()

    def refuse_changed(self, what: str, digests: Mapping[str, str] | None = None) -> None:
        """
        Args:
            what (`str`): What happened in the meantime.
            digests (`Mapping[str, str]`, *optional*): SHA-256 as something else saw them; by default the files are read again.

        Raises:
            [`~serialization.InvalidInput`]: when a file is not what it was when it was selected.
        """
        for name, wanted in self.digests.items():
            found = sha256(self.folder / name) if digests is None else digests.get(name, wanted)
            if found != wanted:
                raise InvalidInput(f"{self.folder / name}: changed {what}; publish again when nobody writes there")


def sha256(path: Path) -> str | None:
    """SHA-256 of a file; `None` when it is gone."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def model_files(folder: Path, include: Iterable[str] = ()) -> Selection:
    """
    What of a folder is published, and why the rest is not.

    Args:
        include (`Iterable[str]`): Files of other kinds, by their path in the folder.

    Raises:
        [`~serialization.InvalidInput`]: when there is no safetensors file, when a named file may not be published, or when a file is not
            what its name says.
    """
    if not folder.is_dir():
        raise InvalidInput(
            f"{folder}: is a file; give the folder {folder.parent}" if folder.exists() else f"{folder}: no such folder"
        )
    names, skipped = _files_below(folder)
    chosen = Selection(folder, skipped=skipped)
    named = [_named(folder, text) for text in include]
    weights = _weights(folder, names)
    for name in names:
        if name in named:
            continue
        reason = _why_not(name, folder, weights)
        if reason is not None:
            chosen.skipped[name] = reason
        elif name == CARD:
            chosen.card = _checked(folder / name, problem_of_text, CARD_BYTES).decode("utf-8-sig")
        else:
            check, limit = _kind(name)
            _checked(folder / name, check, limit)
            chosen.take(name)
    for name in named:
        _refuse_container(folder / name, name)
        chosen.skipped.pop(name, None)
        chosen.take(name)
    config = chosen.files.get("config.json")
    if isinstance(config, bytes):
        chosen.files["config.json"] = repaired_config(config)
    return chosen


def _files_below(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Files that may be of a known kind, and those that no look is spent on. `watermark/` and signatures are made anew."""
    names, skipped = [], {}
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for path in sorted(Path(place) / name for name in files + links):
            name = path.relative_to(folder).as_posix()
            parts = PurePosixPath(name).parts
            if parts[0] == FOLDER or name == SIGNATURE:
                continue
            if path.is_symlink() or not path.is_file():
                skipped[name] = "a link or no plain file"
            elif any(part.startswith(_LEFT_ALONE) for part in parts):
                skipped[name] = "hidden, or left by training"
            else:
                names.append(name)
    return sorted(names), skipped


def _weights(folder: Path, names: list[str]) -> set[str]:
    """The files that a reader of this folder takes for the model, which are those that the mark is read from."""
    usable = {name for name in names if PurePosixPath(name).name.casefold() not in KEY_NAMES}
    if not any(name.endswith(".safetensors") and "/" not in name for name in usable):
        pickled = next((name for name in names if name.lower().endswith(PICKLED_SUFFIXES)), None)
        why = (
            f"{pickled} is pickled and is never published" if pickled else "it is no saved model, or holds links only"
        )
        raise InvalidInput(f"{folder}: holds no .safetensors file ({why}); save the model with save_pretrained")
    index = folder / INDEX_NAME
    everything = {path.name for path in folder.iterdir()}

    def choose(present: set[str]) -> set[str]:
        return set(choose_weight_files(present, lambda: read_json(index, HEADER_BYTES, allow_floats=True), folder)[0])

    weights, read = choose(usable), choose(everything)
    if not weights == read <= usable:
        odd = min((weights ^ read) | (read - usable))
        raise InvalidInput(
            f"{folder / odd}: is a part of the model that is missing or never published (a link, a key's pool, left by training); mend the "
            "folder, for example with save_pretrained"
        )
    return weights | ({INDEX_NAME} if "model.safetensors" not in weights else set())


def _why_not(name: str, folder: Path, weights: set[str]) -> str | None:
    """The reason for which a file that nobody named is left out; `None` when it is of a known kind."""
    lower = PurePosixPath(name).name.casefold()
    if lower in KEY_NAMES:
        return "belongs to a key folder"
    if lower.endswith(ARCHIVE_SUFFIXES):
        return "an archive"
    if lower.endswith(PICKLED_SUFFIXES):
        return "pickled"
    if name.endswith(".safetensors") or name == INDEX_NAME:
        return None if name in weights else "weights that the mark is not read from"
    if lower.endswith(IMAGES):
        return None if "/" not in name or _shown(folder / CARD, name) else "an image that the card does not show"
    if "/" in name:
        return "in a sub-folder"
    if name == CARD or name in JSON_NAMES or TERMS.fullmatch(name):
        return None
    if name == COST:
        return "stays here; its figures go into the card"
    if LABELS.fullmatch(name):
        return None if (folder / name).stat().st_size <= LABEL_BYTES else "too large for a list of labels"
    return "not a known kind of file"


def _shown(card: Path, name: str) -> bool:
    """Whether a card mentions an image: a data set in a sub-folder is not published with the model."""
    return card.is_file() and not card.is_symlink() and name.encode() in card.read_bytes()[:CARD_BYTES]


def _kind(name: str) -> tuple[Problem, int | None]:
    """What a file of this name must be, and how large it may be."""
    if name.endswith(".safetensors"):
        return problem_of_weights, None
    if name.casefold().endswith(IMAGES):
        return problem_of_image, FROZEN_BYTES
    if name.endswith(".json"):
        return problem_of_json, HEADER_BYTES if name == INDEX_NAME else CONFIG_BYTES
    return problem_of_text, LABEL_BYTES


def _checked(path: Path, check: Problem, limit: int | None) -> bytes:
    if limit is not None and path.stat().st_size > limit:
        raise InvalidInput(f"{path}: has {path.stat().st_size} bytes, limit {limit}; nothing was uploaded")
    problem = check(path)
    if problem is not None:
        # Its real kind explains more than what it is not.
        raise InvalidInput(f"{path}: {_in_words(container(path)) or problem}; nothing was uploaded")
    if check is problem_of_weights:
        return b""
    _refuse_container(path, path.name)
    return path.read_bytes()


def _named(folder: Path, text: str) -> str:
    """The path in the folder that the user gave, checked."""
    place = PurePosixPath(Path(text).as_posix())
    if place.is_absolute() or ".." in place.parts or not place.parts:
        raise InvalidInput(f"include {text!r}: name a file by its path inside the model folder")
    name, path = place.as_posix(), folder / place
    links = [part for part in (path, *path.parents[: len(place.parts) - 1]) if part.is_symlink()]
    if links or not path.is_file():
        raise InvalidInput(f"include {text!r}: is no file in {folder}" + (" but a link" if links else ""))
    if place.parts[0].casefold() == FOLDER or name in (SIGNATURE, CARD):
        raise InvalidInput(f"include {text!r}: is written by publishing itself; leave it out")
    if not _PATH.fullmatch(name):
        raise InvalidInput(
            f"include {text!r}: a statement lists names of letters, digits, `_`, `.` and `-` that do not begin with a full stop; rename it"
        )
    if place.name.casefold() in KEY_NAMES:
        raise InvalidInput(f"include {text!r}: belongs to a key folder and is never published")
    return name


def never_published(name: str) -> bool:
    """Whether a name alone says that a file is an archive, a pickle or a part of a key folder."""
    last = PurePosixPath(name).name.casefold()
    return last in KEY_NAMES or last.endswith(ARCHIVE_SUFFIXES + PICKLED_SUFFIXES)


def _refuse_container(path: Path, name: str) -> None:
    """Archives and pickles are never published, even when they are named: nobody sees what is in them."""
    if never_published(name):
        raise InvalidInput(f"{path}: archives and pickles are never published; unpack it and name the files")
    if name.endswith(".safetensors"):
        problem = problem_of_weights(path)
    else:
        kind = container(path)
        problem = kind and f"is {kind}, and archives and pickles are never published"
    if problem is not None:
        raise InvalidInput(f"{path}: {problem}; nothing was uploaded")


def _in_words(kind: str | None) -> str | None:
    return None if kind is None else f"is {kind}, whatever its name says"


def repaired_config(raw: bytes) -> bytes:
    """
    The config of a timm export as transformers can load it: `model_args.num_classes` collides with the argument that its wrapper passes
    itself. Other configs stay as they are.
    """
    config = parse_json(raw, allow_floats=True, max_bytes=CONFIG_BYTES, max_brackets=100_000)
    arguments = config.get("model_args")
    if "pretrained_cfg" not in config or not isinstance(arguments, dict) or "num_classes" not in arguments:
        return raw
    del arguments["num_classes"]
    if not arguments:
        del config["model_args"]
    return (json.dumps(config, indent=2) + "\n").encode()
