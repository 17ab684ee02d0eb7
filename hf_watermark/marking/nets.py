"""The models that are marked: in memory, or in a folder that is never loaded in full."""

import copy
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import nn

from ..backbones import images_taken, unwrapped
from ..backbones.names import Renamed, Source
from ..publishing.files import JSON_NAMES, LABELS, TERMS
from ..serialization import InvalidInput, SafetensorsFolder, named_tensors_digest
from ..suspects.source import RepoSource, parse_repo
from .fidelity import answers, relative_change
from .pictures import usual_side
from .stored import NotStreamed, Weights, empty_model, hollow


CONFIG = "config.json"
RESULTS = "_results.json"  # of the model before the mark


class Net(Protocol):
    """
    A model that is marked.

    Attributes:
        source (`nn.Module`): As it was, for forward passes.
        start (`str`, *optional*): Its [`~keys.start_digest`], where that cannot be told from `source`.
        layers (`dict[str, float]`, *optional*): Relative change of each matrix, where it cannot be told from `source` and the copy.
    """

    source: nn.Module
    start: str | None
    layers: dict[str, float] | None

    def copy(self) -> nn.Module:
        """A fresh copy to be marked; the one before is given up."""

    def lent(self, names: Iterable[str]) -> Any:
        """Context in which these tensors of the copy can be read and changed."""

    @property
    def unmarked(self) -> nn.Module | Path:
        """The model as it was, as a suspect."""

    @property
    def marked(self) -> nn.Module | Path:
        """The copy as a suspect."""

    def save(self, folder: Path) -> None:
        """Writes the copy."""


class LoadedNet:
    """A module in memory."""

    start: str | None = None
    layers: dict[str, float] | None = None

    def __init__(self, model: nn.Module):
        self.source = unwrapped(model)
        self.unmarked: nn.Module = self.source
        self.marked: nn.Module = self.source

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def copy(self) -> nn.Module:
        self.marked = copy.deepcopy(self.source)
        return self.marked

    @contextmanager
    def lent(self, names: Iterable[str]) -> Iterator[None]:
        yield

    def save(self, folder: Path) -> None:
        self.marked.save_pretrained(folder)  # type: ignore[operator]


class StoredNet:
    """
    A model folder. `source` and its copy are modules without weights: each part reads its own when it computes, and forgets them. The copy lies
    in a folder beside the output, with the same shards; only tensors that change are written there.

    Args:
        folder (`Path`):
            With `config.json` and safetensors in float32.
        output (`Path`):
            The folder that will be written, which must not exist.

    Raises:
        [`NotStreamed`]: when it has to be loaded in full.
        [`~serialization.InvalidInput`]: when it is no model folder.

    Example:

    ```python
    >>> from hf_watermark.marking.nets import StoredNet

    >>> with StoredNet("my-model", "my-marked-model") as net:
    ...     sum(not parameter.is_meta for parameter in net.source.parameters())
    1
    ```
    """

    def __init__(self, folder: str | Path, output: str | Path):
        output = Path(output)
        if os.path.lexists(output):
            raise InvalidInput(f"{output}: exists; choose a new folder for `output`")
        self._draft = output.with_name(f".{output.name}-{secrets.token_hex(4)}")
        self.unmarked: Path = Path(folder)
        self._stored = SafetensorsFolder(folder)
        self.source, self._names = empty_model(self._stored)
        live = Renamed(self._stored, {name: Source((file,)) for name, file in self._names.items()})
        hollow(self.source, Weights(self.source, live))
        self._refuse_entangled()
        # Of float32 tensors it is the digest of the loaded model. Reading refuses what is not finite.
        self.start: str | None = named_tensors_digest(live)
        self.layers: dict[str, float] | None = {}
        self._copy: tuple[nn.Module, Weights, SafetensorsFolder] | None = None
        self._changed: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._draft, ignore_errors=True)

    def _refuse_entangled(self) -> None:
        """Raises [`NotStreamed`] for a model in which one part computes with the weights of another one."""
        try:
            found, _ = answers(self.source, images_taken(self.source, usual_side(self.source)), False)
        except (NotImplementedError, RuntimeError) as error:
            raise NotStreamed(f"{self._stored.path}: cannot compute part by part ({str(error)[:200]})") from None
        if found.is_meta:
            raise NotStreamed(f"{self._stored.path}: cannot compute part by part")

    def copy(self) -> nn.Module:
        if self._copy is None:
            self._copy_files()
            written = SafetensorsFolder(self._draft)
            model, names = empty_model(written)
            weights = Weights(model, Renamed(written, {name: Source((file,)) for name, file in names.items()}))
            hollow(model, weights)
            self._copy = model, weights, written
        model, weights, written = self._copy
        for name in self._changed:
            written.overwrite(self._names[name], self._stored[self._names[name]])
        weights.fill([weights.first])
        self._changed, self.layers = set(), {}
        return model

    def _copy_files(self) -> None:
        self._draft.parent.mkdir(parents=True, exist_ok=True)
        self._draft.mkdir()
        folder = self._stored.path
        others = [path for path in folder.iterdir() if _is_copied(path)]
        for path in [*self._stored.files, *others]:
            shutil.copyfile(path, self._draft / path.name)

    @contextmanager
    def lent(self, names: Iterable[str]) -> Iterator[None]:
        assert self._copy is not None and self.layers is not None
        _, weights, written = self._copy
        with ExitStack() as stack:
            before = {name: tensor.clone() for name, tensor in weights.fill(names).items()}
            stack.callback(weights.empty, before)
            yield
            for name, old in before.items():
                new = weights.get(name)
                if not torch.equal(old, new):
                    written.overwrite(self._names[name], new)
                    self._changed.add(name)
                    if new.ndim > 1:
                        self.layers[name] = relative_change(old, new)

    @property
    def marked(self) -> Path:
        return self._draft

    def save(self, folder: Path) -> None:
        for path in self._draft.iterdir():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        os.replace(self._draft, folder)


def model_folder(source: str | Path) -> Path:
    """
    Where a model lies on this machine: a folder as it is; of a repository on the Hub (`user/repo[@revision]`) what is marked and copied is fetched.

    Raises:
        [`~serialization.InvalidInput`]: when the repository cannot be read, or holds no safetensors or no config.

    Example:

    ```python
    >>> from hf_watermark.marking.nets import model_folder

    >>> model_folder("my-model").name
    'my-model'
    ```
    """
    named = parse_repo(source) if isinstance(source, str) and not Path(source).exists() else None
    if named is None:
        return Path(source)
    repo = RepoSource(*named)
    if CONFIG not in repo.sizes:
        raise InvalidInput(f"{repo.name}: has no {CONFIG}, so it does not say what model its weights belong to")
    repo.weights()
    for name in repo.sizes:
        if _is_known(name):
            repo.path(name)
    return repo.path(CONFIG).parent


def _is_copied(path: Path) -> bool:
    """Files beside the weights that are as true of the marked model."""
    if path.is_symlink() or not path.is_file():
        return path.is_symlink() and _is_known(path.name)  # as in the Hub's cache
    return _is_known(path.name)


def _is_known(name: str) -> bool:
    known = name in JSON_NAMES or LABELS.fullmatch(name) or TERMS.fullmatch(name)
    return bool(known) and not name.endswith(RESULTS)


__all__ = ["LoadedNet", "Net", "NotStreamed", "StoredNet", "model_folder"]
