"""`Suspect`: one face for whatever is to be checked, which says what it can give."""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..backbones import (
    Composed,
    LiveChanges,
    adapter_layers,
    answers_of,
    as_one,
    changes,
    named_on_backbone,
    plain_copy,
    run_on_backbone,
    second_names,
    shapes_in,
    unwrapped,
)
from ..evidence import Access
from ..keys.context import class_names
from ..serialization import InvalidInput, Unreadable
from ..serialization.kinds import is_adapter
from .adapters import ADAPTED, NO_BASE, UNKNOWN, Base, adapter_in
from .answers import AccessError, LabelsOnly
from .asking import Answer, Askable, Asked
from .pictures import Function, PictureSuspect
from .source import Source, parse_repo, refuse_missing_file
from .stored import as_meant, beside_in_words, config_beside, files_at, live_as_meant, tensors_of_repo


if TYPE_CHECKING:
    from ..keys import ModelContext


class Suspect(Askable):
    """
    What somebody wants checked. Make one with [`Suspect.open`].

    A suspect never runs remote code, is never built from its own config, and never sees a key.

    Args:
        name (`str`):
            What messages call it.
        weights (`Mapping[str, torch.Tensor]`, *optional*):
            Tensors by name, read one at a time.
        shapes (`Mapping[str, tuple[int, ...]]`, *optional*):
            Shape of every tensor.
        answer (`Callable`, *optional*):
            Takes float images `[n, channels, height, width]` in the model's input space and returns labels `[n]` or
            probabilities `[n, classes]`.
        batch_size (`int`, *optional*, defaults to 256):
            Most images that are given to `answer` at once.
        module (`Callable`, *optional*):
            Gives the suspect as a module, or its tensors on the owner's architecture.
        tensors (`Callable`, *optional*):
            Gives all tensors at once; downloads a repo. By default those of `weights`.

    Attributes:
        queries (`int`): Images asked so far.
        unusable (`int`): Answers among them that could not be used.
        base ([`Base`], *optional*): What was given to put an adapter on, or to take away from a whole model.
        unread (`str`): Why what was read may not be what the suspect computes; then "not found" is not said.
        stored_as (`str`): Formats that its weights are stored in, where these are no plain numbers.

    Example:

    ```python
    >>> suspect = Suspect.open("my-model", key.backbone)
    >>> sorted(suspect.access)
    [<Access.LABELS: 'labels'>, <Access.WEIGHTS: 'weights'>]
    >>> print(verify(suspect, key).verdict)
    mark found
    ```
    """

    def __init__(
        self,
        name: str,
        weights: Mapping[str, torch.Tensor] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        answer: Answer | None = None,
        batch_size: int = 256,
        module: Callable[[], nn.Module] | None = None,
        tensors: Callable[[], Mapping[str, torch.Tensor]] | None = None,
    ):
        # What a module answers with is known, what a function returns is looked at.
        super().__init__(name, answer, batch_size, logits=module is not None)
        self._module, self._tensors, self._weights, self._shapes = module, tensors, weights, shapes
        self.unread = ADAPTED if "adapter_config.json" in getattr(weights, "beside", ()) else ""
        self.stored_as = ""
        self.base: Base | None = None
        self._changes: Any = None  # by the base's names, or why they cannot be read
        self._changed: Suspect | None = None
        self._labels: Callable[[], Mapping[str, Any]] = dict  # the config that says how its classes are called
        self._named: Callable[[], Mapping[str, torch.Tensor]] = lambda: {}  # by the names of the owner's architecture

    @classmethod
    def open(
        cls,
        source: "Suspect | nn.Module | str | Path | Answer",
        backbone: Mapping[str, Any] | None = None,
        token: str | bool | None = None,
        context: "ModelContext | None" = None,
        base: Base | None = None,
    ) -> "Suspect":
        """
        Whatever is to be checked, behind one face. Nothing is downloaded or built before it is read or asked.

        Args:
            source (`Suspect`, `nn.Module`, `str`, `Path` or `Callable`):
                A model, a folder or file of safetensors, a Hub repo `user/repo[@revision]`, a pipeline of transformers (its model is
                read), or a function `images -> labels or probabilities`. A string that names an existing path is that path.
            backbone (`Mapping`, *optional*):
                The owner's architecture (`key.backbone`), with which a folder's or repo's tensors can also be queried.
            token (`str` or `bool`, *optional*):
                For a Hub repo: access token; by default the one that `huggingface_hub` finds; `False` sends none.
            context ([`~keys.ModelContext`], *optional*):
                The owner's class names and normalisation (`key.context`), with which a function can also be one that takes a picture and
                returns `[{"label": ..., "score": ...}]`.
            base ([`Base`], *optional*):
                What an adapter is put on, or taken away from a whole model to see what an adapter changed.

        Raises:
            [`~serialization.InvalidInput`]: when the source is none of these or cannot be read.
        """
        if isinstance(source, Suspect | nn.Module):
            found = source if isinstance(source, Suspect) else cls.of_module(type(source).__name__, source)
            return found if base is None else found.beside(base)
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            raise InvalidInput(
                f"{source[:200]} is an address; wrap it with the owner's labels and normalisation: Endpoint(url, ...)"
            )
        if isinstance(source, str) and parse_repo(source) and not Path(source).exists():
            refuse_missing_file(source)
            return cls._open_repo(source, backbone, token, base)
        if isinstance(source, str | Path):
            return cls._open_path(Path(source), backbone, base)
        if isinstance(source, type):
            raise InvalidInput(
                f"cannot check the class {source.__name__} as `suspect`; give an object of it: {source.__name__}(...)"
            )
        if callable(source):
            model = getattr(source, "model", None)
            if isinstance(model, nn.Module) and type(source).__module__.startswith("transformers.pipelines"):
                return cls.of_module(f"{type(source).__name__} of a {type(model).__name__}", model)
            name = str(getattr(source, "name", "endpoint"))
            if context is None or isinstance(source, PictureSuspect):
                return cls(name, answer=source)
            return cls(name, answer=Function(source, context))
        raise InvalidInput(
            f"cannot check a {type(source).__name__}; give a model, a folder of safetensors, a Hub repo or a callable"
        )

    @classmethod
    def _open_path(cls, path: Path, backbone: Mapping[str, Any] | None, base: Base | None) -> "Suspect":
        if not os.path.exists(path):
            link = " is a link that leads nowhere; put the file itself there" if os.path.islink(path) else ""
            raise InvalidInput(
                f"{str(path)[:300]}:{link or ' no such file or folder; give a folder with model.safetensors'}"
            )
        tensors = files_at(path)
        suspect = cls._of_files(str(path), tensors, backbone, lambda: tensors, base)
        suspect._labels = lambda: config_beside(path)
        return suspect

    @classmethod
    def _open_repo(
        cls, repo: str, backbone: Mapping[str, Any] | None, token: str | bool | None, base: Base | None
    ) -> "Suspect":
        name, tensors, get_all, source = tensors_of_repo(repo, token)
        return cls._of_files(name, tensors, backbone, get_all, base, source)

    @classmethod
    def of_stored(cls, tensors: Any) -> "Suspect":
        """A model whose files were opened already, such as [`~suspects.remote.RemoteSafetensors`]: only its weights are read."""
        return cls._of_model(tensors.name, tensors, None, lambda: tensors)

    @classmethod
    def _of_files(
        cls,
        name: str,
        tensors: Any,
        backbone: Mapping[str, Any] | None,
        get_all: Callable[[], Mapping[str, torch.Tensor]],
        base: Base | None,
        source: Source | None = None,
    ) -> "Suspect":
        """A model, or an adapter alone or on its base."""
        if not is_adapter(tensors.beside):
            return cls._of_model(name, tensors, backbone, get_all).beside(base)
        made = adapter_in(tensors, source)
        if base is None or isinstance(made, InvalidInput):
            suspect = cls._of_tensors(name, tensors, tensors.shapes, backbone, get_all)
        else:
            whole = Composed(base.tensors, made)
            suspect = cls._of_tensors(name, whole, whole.shapes, backbone, lambda: whole)
        suspect._changes, suspect.unread = made, beside_in_words(tensors)
        return suspect.beside(base)

    @classmethod
    def _of_model(
        cls,
        name: str,
        tensors: Any,
        backbone: Mapping[str, Any] | None,
        get_all: Callable[[], Mapping[str, torch.Tensor]],
    ) -> "Suspect":
        meant = as_meant(tensors)

        def all_meant() -> Mapping[str, torch.Tensor]:
            whole = get_all()
            return meant.tensors if whole is tensors else as_meant(whole, meant.said).tensors

        suspect = cls._of_tensors(name, meant.tensors, meant.tensors.shapes, backbone, all_meant)
        suspect.stored_as = meant.forms
        suspect.unread = suspect.unread or meant.doubt
        return suspect

    @classmethod
    def _of_tensors(
        cls,
        name: str,
        tensors: Mapping[str, torch.Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        backbone: Mapping[str, Any] | None,
        get_all: Callable[[], Mapping[str, torch.Tensor]],
    ) -> "Suspect":
        if not backbone:
            return cls(name, tensors, shapes, tensors=get_all)
        # Built at the first query only: white-box checks never need the module.
        module = cache(lambda: run_on_backbone(backbone, get_all()))
        suspect = cls(name, tensors, shapes, _ask_module(module), module=module, tensors=get_all)
        suspect._named = cache(lambda: named_on_backbone(backbone, get_all()))
        return suspect

    @classmethod
    def of_module(cls, name: str, module: nn.Module) -> "Suspect":
        """
        A live model under a name of one's own.

        Raises:
            [`~serialization.InvalidInput`]: when its `state_dict` has names that are no strings.
        """
        bare = unwrapped(module)
        # One name per tensor, as in a file, where layers share weights. Some modules keep more than tensors (packed weights of quantised layers).
        again = second_names(bare)
        held = bare.state_dict()
        if odd := [key for key in held if not isinstance(key, str)]:
            raise InvalidInput(
                f"{name}: `state_dict` of the suspect names a tensor by a {type(odd[0]).__name__}; give a module whose names are strings"
            )
        state = {key: item for key, item in held.items() if isinstance(item, torch.Tensor) and key not in again}
        with torch.no_grad():
            weights, forms = live_as_meant(as_one(bare, state))
        suspect = cls(
            name, weights, shapes_in(weights), _ask_module(lambda: bare), module=cache(lambda: plain_copy(bare))
        )
        suspect.stored_as = forms
        suspect._labels = lambda: {"id2label": getattr(getattr(bare, "config", None), "id2label", None)}
        if made := changes(bare):
            suspect._changes = LiveChanges(made)
        elif adapter_layers(bare):
            suspect.unread = UNKNOWN
        return suspect

    @property
    def is_model(self) -> bool:
        """Whether it is answered by a module at hand, and not by a function or a service."""
        return self._module is not None

    @property
    def class_names(self) -> tuple[str, ...]:
        """What its own config says its classes are called, in the order of its answers; empty where it says nothing. Nothing else is read from there."""
        return tuple(class_names(self._labels()))

    def reordered(self, places: Sequence[int]) -> "Suspect":
        """[`Askable.reordered`]; a test that changes its weights would see the order that they are in, and is left out."""
        other = super().reordered(places)
        other._module = None
        return other

    @property
    def is_whole(self) -> bool:
        """Whether this is a model, and no adapter and nothing with one in it."""
        return self._changes is None

    def beside(self, base: Base | None) -> "Suspect":
        """The same suspect with a base that was given for it."""
        other = copy.copy(self)
        other.base, other._changed = base, None
        return other

    def changed(self, start: str) -> "Suspect":
        """
        What an adapter changes, as a suspect: its products of factors where the suspect is an adapter, or has one; else the whole model, under the names
        of the owner's architecture where these can be told, whose `base` has to be taken away by the reader.

        Args:
            start (`str`):
                Digest of the base that the key commits to.

        Raises:
            [`~serialization.Unreadable`]: for a whole model without the base that the key was made for.
            [`~serialization.InvalidInput`]: for an adapter that cannot be read.
        """
        if isinstance(self._changes, InvalidInput):
            raise self._changes
        if self._changes is None:
            if self.base is None:
                raise Unreadable(NO_BASE)
            self.base.refuse_other(start)
        if self._changed is None:
            tensors: Any = self._named() or self.weights if self._changes is None else self._changes
            self._changed = Suspect(self.name, tensors, shapes_in(tensors))
            self._changed._changes, self._changed.base = self._changes, self.base
            self._changed._changed = self._changed
        return self._changed

    def mirrored(self) -> "Suspect":
        """
        The same suspect, whose answers are those to mirrored images: it finds black-box marks behind a filter that mirrors its inputs, which
        costs a network nothing that was trained on mirrored images too. Weights, and tests that change them, are what they were. Checking
        it beside the plain suspect is a second look: give `looks=2`.

        Example:

        ```python
        >>> evidence = verify(Suspect.open("my-model", key.backbone).mirrored(), key, looks=2)
        ```
        """
        other = copy.copy(self)
        other.name, other._asked, other._most = f"{self.name}, mirrored", Asked(), None
        ask = self._answer
        other._answer = None if ask is None else lambda images: ask(images.flip(-1))
        other._asked_of = ask
        return other

    @property
    def access(self) -> set[Access]:
        """What this suspect is known to offer; whether it gives probabilities is known once it has answered."""
        offered = {Access.WEIGHTS} if self._weights is not None else set()
        if self._answer is not None:
            offered |= {Access.LABELS, Access.PROBABILITIES} if self._asked.scores else {Access.LABELS}
        return offered

    def require(self, access: Access, method: str) -> None:
        """
        Raises:
            [`AccessError`]: when the suspect does not offer what the method reads.
        """
        untried = self._answer is not None and self._asked.scores is None
        if access not in self.access and not (access is Access.PROBABILITIES and untried):
            offers = ", ".join(sorted(self.access)) or "nothing"
            kind = LabelsOnly if access is Access.PROBABILITIES and self._answer is not None else AccessError
            raise kind(f"method `{method}` needs {access} of the suspect, {self.name} offers {offers}")

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """
        Tensors by name, read one at a time.

        Raises:
            [`AccessError`]: when it can only be queried.
        """
        if self._weights is None:
            raise AccessError(
                f"{self.name} offers no weights; it can only be checked by methods that read answers (black-box)"
            )
        return self._weights

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """
        Shape of every tensor by name; nothing is read for it.

        Raises:
            [`AccessError`]: when it can only be queried.
        """
        if self._shapes is None:
            raise AccessError(
                f"{self.name} offers no weights; it can only be checked by methods that read answers (black-box)"
            )
        return self._shapes

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """All tensors by name, read one at a time. Of a Hub repo the files are downloaded."""
        return self.weights if self._tensors is None else self._tensors()

    def module(self) -> nn.Module:
        """
        The suspect as a module; do not change it.

        Raises:
            [`AccessError`]: when it can only be queried, or read.
        """
        if self._module is None:
            raise AccessError(
                f"{self.name} is no model whose weights can be changed; only plain answers can be checked"
            )
        return self._module()


def _ask_module(get_model: Callable[[], nn.Module]) -> Answer:
    return lambda images: answers_of(get_model(), images)
