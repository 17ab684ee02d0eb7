"""What is asked of a suspect, within a budget, and what its answers are read as."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from ..serialization import InvalidInput
from .answers import (
    AccessError,
    BudgetExceeded,
    LabelsOnly,
    as_tensor,
    in_order,
    refuse_other_scores,
    top_labels,
    usable_scores,
)
from .pictures import PictureSuspect


@dataclass
class Asked:
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


class Askable:
    """Whatever answers images, if `answer` is there; see [`Suspect`]."""

    def __init__(self, name: str, answer: Answer | None, batch_size: int, logits: bool):
        self.name, self._answer, self.batch_size = name, answer, batch_size
        self._asked_of = answer
        self._asked = Asked()
        self._most: int | None = None
        self._logits = logits

    def within(self, budget: int | None) -> Self:
        """The same suspect, that can be asked `budget` images more at most; what is asked counts for both."""
        other = copy.copy(self)
        limits = [self._most, None if budget is None else self.queries + budget]
        other._most = min((limit for limit in limits if limit is not None), default=None)
        return other

    def apart(self) -> Self:
        """The same suspect, asked for something that is no part of a check: it counts for no budget."""
        other = copy.copy(self)
        other._asked, other._most = Asked(fits=True), None
        return other

    def reordered(self, places: Sequence[int]) -> Self:
        """
        The same suspect, whose answers are in another order of classes.

        Args:
            places (`Sequence[int]`):
                Its number of each class; -1 where it has none. An answer that is none of these is unusable.
        """
        other, ask = copy.copy(self), self._answer
        other._answer = None if ask is None else lambda images: in_order(ask(images), places, self._logits)
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
        if self._logits:
            return scores.softmax(dim=1)
        refuse_other_scores(scores[~unusable], self.name)
        return scores
