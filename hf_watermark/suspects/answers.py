"""What whoever answers for a suspect may say, and what is made of it. They are a stranger: text, nothing, numbers of any kind."""

from collections.abc import Sequence
from typing import Any

import torch

from ..serialization import InvalidInput, Unreadable


# Below the least logit of an answer: its exponent is nothing.
NEVER = 1e3


class AccessError(InvalidInput):
    """A check needs something that this suspect does not offer."""


class LabelsOnly(AccessError, Unreadable):
    """The suspect gives labels, and a method is read from probabilities: nothing can be seen of its mark."""


class BudgetExceeded(AccessError):
    """A check would ask more images than were allowed."""


def as_tensor(given: Any, name: str) -> torch.Tensor:
    """
    Raises:
        [`~serialization.InvalidInput`]: where these are no numbers that a label or a probability could be.
    """
    try:
        answer = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        why = str(error)
    else:
        if not answer.is_complex() and answer.dtype != torch.bool:
            return answer
        why = f"type {answer.dtype}"
    raise InvalidInput(
        f"{name} gave answers that are no numbers ({why}); return labels [n] or probabilities [n, classes]"
    )


def top_labels(answers: torch.Tensor, classes: int, name: str) -> torch.Tensor:
    """Labels `[n]` (int64) of answers `[n]` or `[n, classes]`; -1 where there is none that could be meant."""
    if answers.ndim == 1:
        if answers.is_floating_point():
            raise InvalidInput(f"{name} answered with one float per image; return integer labels or probabilities")
        labels = answers.long()
        usable = (labels >= 0) & (labels < classes)
    else:
        _refuse_other_classes(answers, classes, name)
        # NaN scores must not count as an answer.
        labels, usable = answers.argmax(dim=1), answers.isfinite().all(dim=1)
    return torch.where(usable, labels, -1)


def in_order(given: Any, places: Sequence[int], logits: bool) -> Any:
    """
    Answers in another order of classes; what is no tensor stays.

    Args:
        places (`Sequence[int]`):
            Number of each class in the answers, -1 where there is none: it is never the answer. Images whose answer is in no place get none that can be used.
    """
    if not isinstance(given, torch.Tensor) or given.ndim not in (1, 2):
        return given
    order = torch.tensor(places, device=given.device)
    there = order >= 0
    if given.ndim == 1:
        known = given[:, None].long() == order[None, :].where(there, -2)
        return torch.where(known.any(dim=1), known.int().argmax(dim=1), -1)
    if not len(order[there]) or int(order.max()) >= given.shape[1]:
        return given
    best = given.nan_to_num(-torch.inf).argmax(dim=1)
    missing = given.amin(dim=1, keepdim=True) - NEVER if logits else torch.zeros_like(given[:, :1])
    found = torch.where(there[None, :], given[:, order.clamp_min(0)], missing)
    return found.masked_fill(~torch.isin(best, order[there])[:, None], torch.nan)


def usable_scores(answers: torch.Tensor, classes: int, name: str) -> torch.Tensor:
    """Answers `[n, classes]` as float64; a row with a number that is not finite is all NaN."""
    _refuse_other_classes(answers, classes, name)
    return answers.double().where(answers.isfinite().all(dim=1)[:, None], torch.nan)


def _refuse_other_classes(answers: torch.Tensor, classes: int, name: str) -> None:
    if answers.shape[1] != classes:
        raise Unreadable(
            f"{name} knows {answers.shape[1]} classes, the key was made for {classes}: the label sets do not match"
        )


def refuse_other_scores(scores: torch.Tensor, name: str) -> None:
    """Raises where finite rows `[n, classes]` are no probabilities, even if rounded or cut to the top k."""
    # Two decimals may add half a hundredth per class.
    most = 1.02 + 0.005 * scores.shape[1]
    wrong = (scores < -1e-6).any(dim=1) | (scores > 1.001).any(dim=1) | (scores.sum(dim=1) > most)
    if wrong.any():
        row = scores[wrong][0]
        raise InvalidInput(
            f"{name} answered with scores from {row.min():.3g} to {row.max():.3g} that add up to {row.sum():.3g}: these are no "
            "probabilities; return softmax(logits)"
        )
