"""Marks that a model carries already, of an earlier version: kept while a new key's mark goes in, and read back afterwards."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from ..evidence import Check, Evidence
from ..keys import NO_BEACON, WatermarkKey, refuse_unloaded
from ..serialization import InvalidInput
from ..suspects import Suspect
from ..verification.verifier import Verifier, verify_claims
from .embedding import Embedding, TrainingData


logger = logging.getLogger(__name__)


def read_back(key: WatermarkKey, source: Any, verifier_of: Callable[[str], type[Verifier]]) -> Evidence:
    """Evidence for a model of the owner's under one of his keys, on his own word."""
    claims = [verifier_of(claim.assignment.method)(claim) for claim in key.claims()]
    check = Check(bound=key.beacon != NO_BEACON, disclosed=key.disclosed)
    return verify_claims(claims, Suspect.open(source, key.backbone), check)


def unread_keys(
    keys: Sequence[WatermarkKey], source: Any, verifier_of: Callable[[str], type[Verifier]]
) -> Iterator[str]:
    """The keys whose mark is not found in a model, each with the reason."""
    for key in keys:
        evidence = read_back(key, source, verifier_of)
        if not evidence.found:
            yield f"the key {name_of(key)} ({evidence.verdict}: {evidence.reason})"


def name_of(key: WatermarkKey) -> str:
    """A key as reports and statements call it: the beginning of its precommit."""
    return key.precommit.hex()[:16]


def kept_embeddings(
    keys: Sequence[WatermarkKey], kinds: Sequence[type[Embedding]], model: nn.Module, data: TrainingData
) -> list[Embedding]:
    """
    Embeddings that hold earlier keys in a model that trains on.

    Raises:
        [`~serialization.InvalidInput`]: when a key marks with a method that is not among `kinds`, or is not in the model.
    """
    refused = [key for key in keys if not isinstance(key, WatermarkKey)]
    if refused:
        refuse_unloaded("keep", refused[0], WatermarkKey)
    known = {kind.method: kind for kind in kinds}
    for key in keys:
        for assignment in key.assignments:
            if assignment.method not in known:
                raise InvalidInput(
                    f"`keep`: the key {name_of(key)} marks with `{assignment.method}`, which this trainer does not; stack its trainer "
                    "(stack_trainers), or leave the key out and verify it after training"
                )
    for missing in unread_keys(keys, model, lambda method: known[method].verifier_class):
        raise InvalidInput(f"`keep`: {missing} is not in this model; start from the model that carries it")
    return [known[claim.assignment.method](model, claim, data) for key in keys for claim in key.claims()]


def warn_of_lost(keys: Sequence[WatermarkKey], kinds: Sequence[type[Embedding]], model: nn.Module) -> None:
    """Names the earlier keys that training has lost."""
    known = {kind.method: kind.verifier_class for kind in kinds}
    for lost in unread_keys(keys, model, known.__getitem__):
        logger.warning(
            "%s was to be kept and is not in the trained model: do not claim this model with it. Train with a lower learning rate, or longer",
            lost,
        )


__all__ = ["kept_embeddings", "name_of", "read_back", "unread_keys", "warn_of_lost"]
