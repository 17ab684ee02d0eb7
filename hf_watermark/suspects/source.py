"""One face for the files of a model, in a local folder or in a repository on the Hub."""

import hashlib
import os
import re
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download

from ..package import VERSION
from ..serialization import JSON_BYTES, InvalidInput, SafetensorsFolder
from ..serialization.kinds import MODEL, PICKLED, kind_of_names, refusal, refuse_other_kinds
from .errors import HubError, hub_errors


MOST_FILES = 10_000
WEIGHT_BYTES = 16 * 2**30
REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
FILE_SUFFIXES = (".safetensors", ".json", ".gguf", ".onnx", *PICKLED)
WEIGHT_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors|model\.safetensors\.index\.json")


def hub_api(token: str | bool | None = None) -> HfApi:
    return HfApi(token=token, library_name="hf_watermark", library_version=VERSION)


def parse_repo(text: str) -> tuple[str, str | None] | None:
    """`("me/model", "v1")` of `"me/model@v1"`; `None` when it is no name of a repository."""
    name, _, revision = text.partition("@")
    return (name, revision or None) if REPO_ID.fullmatch(name) and ".." not in name else None


def refuse_missing_file(text: str) -> None:
    """
    Raises [`~serialization.InvalidInput`] for the path of a model file that is not there: it could be read as the name of a repository, too,
    and nobody would look for the mistake in the path.
    """
    if text.lower().endswith(FILE_SUFFIXES):
        refuse_missing(Path(text))


def refuse_missing(path: Path) -> None:
    """Raises [`~serialization.InvalidInput`] for a path where nothing is, or a link that leads nowhere."""
    if not os.path.exists(path):
        link = " is a link that leads nowhere; put the file itself there" if os.path.islink(path) else ""
        raise InvalidInput(
            f"{str(path)[:300]}:{link or ' no such file or folder; give a folder with model.safetensors'}"
        )


class Source(ABC):
    """
    Files of one model, fixed to one moment where that can be (a commit). Make one with [`Source.open`].

    Attributes:
        name (`str`): For messages.
        model_id (`str`, *optional*): Name of the repository, if it is one.
        commit (`str`, *optional*): Its commit.
        sizes (`dict[str, int]`): All files with their bytes.
    """

    name: str
    model_id: str | None = None
    commit: str | None = None
    sizes: dict[str, int]

    @staticmethod
    def open(source: "Source | str | Path", token: str | bool | None = None) -> "Source":
        """
        Args:
            source (`str` or `Path`): A folder, or `owner/name[@revision]`. A folder of that name goes first.

        Raises:
            [`HubError`]: when the repository is private, gated, missing or cannot be reached.
            [`~serialization.InvalidInput`]: when it is neither.
        """
        if isinstance(source, Source):
            return source
        if Path(source).is_dir():
            return FolderSource(Path(source))
        refuse_other_kinds(source, "a published model: its folder, or owner/name[@revision]")
        refuse_missing_file(str(source))
        repo = parse_repo(str(source))
        if repo is None:
            raise InvalidInput(f"{source}: no such folder, and no name of a repository (owner/name[@revision])")
        return RepoSource(*repo, token=token)

    def latest(self) -> "Source":
        """The same place as it is now, where this is an earlier state of it."""
        return self

    def __contains__(self, path: str) -> bool:
        return path in self.sizes

    def read(self, path: str, max_bytes: int = JSON_BYTES) -> bytes | None:
        """Content of a small file; `None` when there is none. Larger files are refused before they are fetched."""
        if path not in self.sizes:
            return None
        if self.sizes[path] > max_bytes:
            raise InvalidInput(f"{self.name}: {path} has {self.sizes[path]} bytes, limit {max_bytes}")
        data = self.path(path).read_bytes()
        if len(data) > max_bytes:
            raise InvalidInput(f"{self.name}: {path} is larger than {max_bytes} bytes")
        return data

    @abstractmethod
    def path(self, path: str) -> Path:
        """Where the file lies on this machine; fetched first if need be."""

    @abstractmethod
    def sha256(self, path: str) -> str:
        """SHA-256 of a file, as the Hub reports it or computed."""

    def weights(self, max_bytes: int = WEIGHT_BYTES) -> SafetensorsFolder:
        """
        All tensors; fetches every weight file of a remote repository.

        Args:
            max_bytes (`int`, *optional*, defaults to 16 GiB): Largest accepted sum of file sizes; checked before anything is fetched.

        Raises:
            [`~serialization.InvalidInput`]: when there is no safetensors file, or a malformed one, or too much of them.
        """
        names = [path for path in self.sizes if WEIGHT_FILE.fullmatch(path)]
        if not any(name.endswith(".safetensors") for name in names):
            raise refusal(self.name, kind_of_names(self.sizes), MODEL)
        total = sum(self.sizes[name] for name in names)
        if total > max_bytes:
            raise InvalidInput(f"{self.name}: {total} bytes of weights, limit {max_bytes}")
        paths = [self.path(name) for name in sorted(names)]
        tensors = SafetensorsFolder(paths[0].parent, max_bytes)
        tensors.beside = frozenset(self.sizes)  # all that the repository lists, fetched or not
        return tensors

    def _refuse_many(self, count: int) -> None:
        if count > MOST_FILES:
            raise InvalidInput(f"{self.name}: has more than {MOST_FILES} files")


class FolderSource(Source):
    """A local folder. Links are not followed, hidden files are left out."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder, str(folder)
        self.sizes = {}
        for path in sorted(folder.rglob("*")):
            place = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in place.parts):
                self.sizes[place.as_posix()] = path.stat().st_size
                self._refuse_many(len(self.sizes))

    def path(self, path: str) -> Path:
        return self.folder / path

    def sha256(self, path: str) -> str:
        with self.path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class NewRepo(Source):
    """A repository that nobody asked for yet: what a dry run takes for the one on the Hub."""

    def __init__(self, repo_id: str):
        if parse_repo(repo_id) is None or "@" in repo_id:
            raise InvalidInput(f"{repo_id}: is no name of a repository (owner/name)")
        self.model_id = self.name = repo_id
        self.sizes = {}

    def path(self, path: str) -> Path:
        raise HubError(f"{self.name}: has no file {path}")

    def sha256(self, path: str) -> str:
        raise HubError(f"{self.name}: has no file {path}")


class RepoSource(Source):
    """A model repository at one commit: nothing can change between two reads."""

    def __init__(self, repo_id: str, revision: str | None = None, token: str | bool | None = None):
        self.model_id, self.name, self.token = repo_id, repo_id + (f"@{revision}" if revision else ""), token
        self.revision = revision
        with hub_errors(self.name):
            info = hub_api(token).model_info(repo_id, revision=revision, files_metadata=True)
        self.commit, self.created_at = info.sha, info.created_at
        siblings = info.siblings or []
        self._refuse_many(len(siblings))
        self.sizes = {item.rfilename: item.size or 0 for item in siblings}
        self._lfs = {item.rfilename: item.lfs.sha256 for item in siblings if item.lfs is not None}

    @cached_property
    def _fetched(self) -> dict[str, Path]:
        return {}

    def latest(self) -> "RepoSource":
        return self if self.revision is None else RepoSource(str(self.model_id), None, self.token)

    def path(self, path: str) -> Path:
        if path not in self.sizes:
            raise HubError(f"{self.name}: has no file {path}")
        if path not in self._fetched:
            with hub_errors(self.name):
                self._fetched[path] = Path(
                    hf_hub_download(str(self.model_id), path, revision=self.commit, token=self.token)
                )
        return self._fetched[path]

    def sha256(self, path: str) -> str:
        if path in self._lfs:
            return self._lfs[path]
        with self.path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
