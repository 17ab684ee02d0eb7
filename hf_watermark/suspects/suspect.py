"""`Suspect`: one face for whatever is to be checked, which says what it can give."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import is_offline_mode
from torch import nn

from ..backbones import answers_of, run_on_backbone, second_names, unwrapped
from ..evidence import Access
from ..serialization import InvalidInput, SafetensorsFolder
from .answers import AccessError, BudgetExceeded, LabelsOnly, as_tensor, refuse_other_scores, top_labels, usable_scores
from .pictures import Function, PictureSuspect
from .remote import RangesIgnored, RemoteSafetensors, cached_folder
from .source import Source, parse_repo, refuse_missing_file


if TYPE_CHECKING:
    from ..keys import ModelContext

ADAPTED = (
    "an adapter (adapter_config.json) lies beside the weights and is loaded onto them, so the model is another one than was read: merge it into "
    "the weights (`merge_and_unload` of peft) and check the result"
)


@dataclass
class _Asked:
    """
    What was asked of a suspect so far.

    Args:
        queries, unusable (`int`): Images, and answers among them that could not be used.
        scores (`bool`, *optional*): Whether answers are scores or labels, which shows only when one is asked for.
        fits (`bool`): Whether it was found that the key's images can be sent.
    """

    queries: int = 0
    unusable: int = 0
    scores: bool | None = None
    fits: bool = False


Answer = Callable[[torch.Tensor], Any]


class Suspect:
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
        unread (`str`): Why what was read may not be what the suspect computes; then "not found" is not said.

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
        self.name, self._module, self._tensors = name, module, tensors
        self._weights, self._shapes, self._answer, self.batch_size = weights, shapes, answer, batch_size
        self._asked_of = answer
        self._asked = _Asked()
        self._most: int | None = None
        self.unread = ADAPTED if "adapter_config.json" in getattr(weights, "beside", ()) else ""

    @classmethod
    def open(
        cls,
        source: "Suspect | nn.Module | str | Path | Answer",
        backbone: Mapping[str, Any] | None = None,
        token: str | bool | None = None,
        context: "ModelContext | None" = None,
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

        Raises:
            [`~serialization.InvalidInput`]: when the source is none of these or cannot be read.
        """
        if isinstance(source, Suspect):
            return source
        if isinstance(source, nn.Module):
            return cls.of_module(type(source).__name__, source)
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            raise InvalidInput(
                f"{source[:200]} is an address; wrap it with the owner's labels and normalisation: Endpoint(url, ...)"
            )
        if isinstance(source, str) and parse_repo(source) and not Path(source).exists():
            refuse_missing_file(source)
            return cls._open_repo(source, backbone, token)
        if isinstance(source, str | Path):
            return cls._open_path(Path(source), backbone)
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
    def _open_path(cls, path: Path, backbone: Mapping[str, Any] | None) -> "Suspect":
        if not path.exists():
            raise InvalidInput(f"{path}: no such file or folder; give a folder with model.safetensors")
        tensors = SafetensorsFolder(path)
        return cls._of_tensors(str(path), tensors, tensors.shapes, backbone, lambda: tensors)

    @classmethod
    def _open_repo(cls, repo: str, backbone: Mapping[str, Any] | None, token: str | bool | None) -> "Suspect":
        if is_offline_mode():
            cached = cached_folder(repo)
            return cls._of_tensors(repo, cached, cached.shapes, backbone, lambda: cached)
        try:
            tensors = RemoteSafetensors(repo, token)
        except RangesIgnored:
            whole = Source.open(repo, token).weights()
            return cls._of_tensors(repo, whole, whole.shapes, backbone, lambda: whole)
        # A model cannot be run without all of its weights: then the files are downloaded once, into the Hub's own cache.
        return cls._of_tensors(tensors.name, tensors, tensors.shapes, backbone, tensors.download)

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
        return cls(name, tensors, shapes, _ask_module(module), module=module, tensors=get_all)

    @classmethod
    def of_module(cls, name: str, module: nn.Module) -> "Suspect":
        """A live model under a name of one's own."""
        bare = unwrapped(module)
        # One name per tensor, as in a file, where layers share weights. Some modules keep more than tensors (packed weights of quantised layers).
        again = second_names(bare)
        state = {
            key: item for key, item in bare.state_dict().items() if isinstance(item, torch.Tensor) and key not in again
        }
        shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
        return cls(name, state, shapes, _ask_module(lambda: bare), module=lambda: bare)

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
        other.name, other._asked, other._most = f"{self.name}, mirrored", _Asked(), None
        ask = self._answer
        other._answer = None if ask is None else lambda images: ask(images.flip(-1))
        other._asked_of = ask
        return other

    def within(self, budget: int | None) -> "Suspect":
        """The same suspect, that can be asked `budget` images more at most; what is asked counts for both."""
        other = copy.copy(self)
        limits = [self._most, None if budget is None else self.queries + budget]
        other._most = min((limit for limit in limits if limit is not None), default=None)
        return other

    @property
    def queries(self) -> int:
        """Images asked so far."""
        return self._asked.queries

    @property
    def unusable(self) -> int:
        """Answers among them that could not be used."""
        return self._asked.unusable

    @property
    def notes(self) -> list[str]:
        """What whoever answers has to say about the asking, such as inputs that cannot be sent as they are."""
        return list(getattr(self._asked_of, "notes", ()))

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

    def ask(self, images: torch.Tensor) -> torch.Tensor:
        """
        Raw answers for `[n, channels, height, width]` images: labels `[n]` or probabilities `[n, classes]`.

        Raises:
            [`AccessError`]: when it cannot be queried.
            [`BudgetExceeded`]: when more images are asked than it was given to ask.
            [`~serialization.InvalidInput`]: for answers of another form.
        """
        if self._answer is None:
            raise AccessError(
                f"{self.name} cannot be queried; give the model itself, or a key that holds its backbone"
            )
        if self._most is not None and self.queries + len(images) > self._most:
            raise BudgetExceeded(
                f"{self.name}: this check asks {len(images)} images, {self._most - self.queries} are left of its budget; raise the "
                "budget, or use the sequential test, which stops within it"
            )
        if not self._asked.fits:
            self.refuse_no_pictures(images)
        answers = []
        for batch in images.split(self.batch_size):
            unsent = self._unsent
            answer = as_tensor(self._answer(batch), self.name)
            if answer.ndim not in (1, 2) or len(answer) != len(batch):
                raise InvalidInput(
                    f"{self.name} answered with shape {tuple(answer.shape)} to {len(batch)} images; "
                    "return labels [n] or probabilities [n, classes]"
                )
            answers.append(answer.detach().cpu())
            self._asked.queries += len(batch) - (self._unsent - unsent)
        if len({answer.ndim for answer in answers}) > 1:
            raise InvalidInput(f"{self.name} answered with labels in one batch and with probabilities in another")
        self._asked.scores = answers[0].ndim == 2
        return torch.cat(answers)

    def refuse_no_pictures(self, images: torch.Tensor) -> None:
        """
        For those who ask `images` in parts: says before the first one whether they can be sent at all.

        Raises:
            [`~serialization.InvalidInput`]: when the suspect takes pictures, and too many of these are none under its normalisation.
        """
        if isinstance(self._asked_of, PictureSuspect):
            self._asked_of.refuse_no_pictures(images)
        self._asked.fits = True

    @property
    def _unsent(self) -> int:
        return getattr(self._asked_of, "clipped", 0)

    def labels(self, images: torch.Tensor, classes: int) -> torch.Tensor:
        """
        Top-1 labels `[n]` (int64). A refused or unusable answer is -1 and never matches.

        Raises:
            [`~serialization.InvalidInput`]: when the suspect knows another number of classes than the key.
        """
        labels = top_labels(self.ask(images), classes, self.name)
        self._asked.unusable += int((labels < 0).sum())
        return labels

    def probabilities(self, images: torch.Tensor, classes: int) -> torch.Tensor:
        """
        Probabilities `[n, classes]` (float64): the softmax of a model's logits, or what a function returned. They may be rounded, or
        zero beyond the top k. An unusable answer (NaN, infinite) is a row of NaN.

        Raises:
            [`AccessError`]: when the suspect gives labels only.
            [`~serialization.InvalidInput`]: when it knows another number of classes than the key, or returns scores that are no
                probabilities (logits, percentages).
        """
        answers = self.ask(images)
        if answers.ndim == 1:
            self._asked.unusable += len(answers)
            raise LabelsOnly(
                f"{self.name} offers labels only; this method is read from probabilities and cannot decide from labels. Ask for "
                "an endpoint that returns probabilities [n, classes], or use a method that reads labels"
            )
        scores = usable_scores(answers, classes, self.name)
        unusable = scores.isnan().any(dim=1)
        self._asked.unusable += int(unusable.sum())
        if self._module is not None:
            return scores.softmax(dim=1)
        refuse_other_scores(scores[~unusable], self.name)
        return scores


def _ask_module(get_model: Callable[[], nn.Module]) -> Answer:
    return lambda images: answers_of(get_model(), images)
