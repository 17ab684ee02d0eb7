"""`Suspect`: one face for whatever is to be checked, which says what it can give."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..backbones import shapes_in
from ..evidence import Access
from ..keys.context import class_names
from ..serialization import InvalidInput, Unreadable
from .adapters import ADAPTED, NO_BASE, Base
from .answers import AccessError, LabelsOnly
from .asking import Answer, Askable, Asked


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
        from .opening import open_suspect  # which makes these

        return open_suspect(source, backbone, token, context, base)

    @classmethod
    def of_stored(cls, tensors: Any) -> "Suspect":
        """A model whose files were opened already, such as [`~suspects.remote.RemoteSafetensors`]: only its weights are read."""
        from .opening import of_model

        return of_model(tensors.name, tensors, None, lambda: tensors)

    @classmethod
    def of_module(cls, name: str, module: nn.Module) -> "Suspect":
        """
        A live model under a name of one's own.

        Raises:
            [`~serialization.InvalidInput`]: when its `state_dict` has names that are no strings.
        """
        from .opening import of_module

        return of_module(name, module)

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
