"""`Verifier`: what all methods' verifiers share: access, decoy controls, and the way to one evidence."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch

from .backbones import LayoutMismatch
from .configuration import WatermarkConfig
from .evidence import SELF_CHECK, Access, Evidence, Verdict, combine
from .keys import Claim, SubKey
from .serialization import InvalidInput, UnreadableFormat
from .statistics import log2_binomial_tail
from .suspects import Suspect


Observation = TypeVar("Observation")
DECOYS = 100


class SequentialTest(ABC):
    """
    What one sub-key asks, in an order that is fixed before the first answer, and the e-value of the answers so far.

    Attributes:
        images (`torch.Tensor`): `[n, channels, height, width]` in the order of asking.
        stops (`list[int]`): Rising numbers of answers at which the e-value may be looked at.
        access ([`~evidence.Access`]): `LABELS` or `PROBABILITIES`.
        classes (`int`): Number of classes.
    """

    images: torch.Tensor
    stops: list[int]
    access: ClassVar[Access]
    classes: int
    # Whether a small e-value now says that it will not become large.
    can_be_futile: ClassVar[bool] = True

    @abstractmethod
    def update(self, answers: torch.Tensor) -> None:
        """Takes all answers up to the next stop: labels `[n]` or probabilities `[n, classes]`."""

    @abstractmethod
    def score(self, subkey: SubKey) -> Evidence:
        """The e-value, and the p-value 1/E, of all answers so far under this sub-key or a decoy."""


class Verifier(ABC, Generic[Observation]):
    """
    Reads one method's mark. Needs a claim (parameters and disclosed sub-keys) and a suspect; no data set, no trainer.

    A subclass says how to observe the suspect and how to score the observation under a sub-key. The score must be an exact
    p-value under the null that the sub-key's bits are independent of the suspect.

    Args:
        claim ([`~keys.Claim`]):
            Method parameters, disclosed sub-keys and pool.
    """

    method: ClassVar[str]
    access: ClassVar[Access]
    config_class: ClassVar[type[WatermarkConfig]]
    # Whether what it reads depends on the order, scale or basis of the suspect's channels, which an alignment can bring back.
    reads_coordinates: ClassVar[bool] = False

    def __init__(self, claim: Claim):
        self.claim = claim
        self.config: Any = self.config_class.from_dict(claim.assignment.config)
        self.layout = claim.assignment.layout
        # Which level a sequential reading has to reach.
        self.bound = False

    @abstractmethod
    def observe(self, suspect: Suspect, subkey: SubKey) -> Observation:
        """Reads or queries the suspect. May depend on the sub-key's positions or triggers, never on its bits or labels."""

    @abstractmethod
    def score(self, observation: Observation, subkey: SubKey) -> Evidence:
        """The exact test of one sub-key."""

    def sequential(self, subkey: SubKey, most: int | None) -> SequentialTest | None:
        """
        The sequential test of one sub-key with at most `most` images (all by default); `None` where the method has none, or nothing can
        be asked.
        """
        return None

    def verify(self, suspect: Suspect, bound: bool = False, decoys: int = DECOYS) -> list[Evidence]:
        """
        One evidence per disclosed sub-key, each with its decoy controls.

        Args:
            bound (`bool`):
                Whether the key is bound to a public beacon.
            decoys (`int`):
                Number of decoy keys sent through the same code on the same observation.
        """
        suspect.require(self.access, self.method)
        self.bound = bound
        parts = []
        for subkey in self.claim.subkeys:
            observation = self.observe(suspect, subkey)
            part = self.score(observation, subkey)
            part.bound = bound
            part.details["subkey"] = subkey.index
            part.controls = decoy_control([self.score(observation, subkey.decoy()) for _ in range(decoys)])
            parts.append(part.decide())
        return parts


def decoy_control(scores: list[Evidence]) -> dict[str, Any]:
    """
    Summary of decoy keys. They fail as a control when one of them reaches the self-check level (expected once in a million per
    decoy), or when more than the 1e-6 binomial limit of them pass 5 %: then the null does not hold on this suspect.
    """
    if not scores:
        return {}
    values = [score.log2_p for score in scores]
    below = sum(value <= -4.33 for value in values)  # log2(0.05) = -4.32
    control: dict[str, Any] = {
        "decoys": len(scores),
        "best_log2_p": round(min(values), 2),
        "mean_rate": round(sum(score.rate for score in scores) / len(scores), 4),
        "rates": [round(score.rate, 4) for score in scores],
        "below_5_percent": below,
    }
    if min(values) <= SELF_CHECK:
        control["failed"] = f"a decoy key reached log2 p = {min(values):.1f}"
    elif log2_binomial_tail(below, len(scores), 0.05) <= SELF_CHECK:
        control["failed"] = f"{below} of {len(scores)} decoy keys pass 5 %"
    return control


def verify_claims(verifiers: list[Verifier], suspect: Suspect, bound: bool, looks: int = 1) -> Evidence:
    """
    Runs every verifier that the suspect gives access to and combines their sub-keys.

    Raises:
        [`~suspects.AccessError`]: when the suspect offers what none of the methods needs.
        [`~serialization.InvalidInput`]: when no check could be run, unless that is for how the suspect is stored: then nothing can be said,
            and the verdict is `inconclusive`.
    """
    before = suspect.queries
    by_method: list[Evidence] = []
    skipped: list[str] = []
    last_error: Exception | None = None
    for verifier in verifiers:
        try:
            parts = verifier.verify(suspect, bound=bound)
        except InvalidInput as error:
            # One method that cannot run must not hide what the others see; if none can, the caller gets the error.
            skipped.append(f"{verifier.method} was not checked: {error}")
            last_error = error
            continue
        by_method.append(summary(combine(parts, verifier.method)))
    if not by_method:
        assert last_error is not None
        if isinstance(last_error, LayoutMismatch | UnreadableFormat):
            return unreadable("+".join(verifier.method for verifier in verifiers), skipped, last_error)
        raise last_error
    leaves = [leaf for evidence in by_method for leaf in evidence.parts]
    if len(by_method) == 1:
        total = summary(combine(leaves, by_method[0].method, looks))
    else:
        total = summary(combine(leaves, "combined", looks))
        total.parts = by_method
    if total.trials == 0 and total.verdict is Verdict.NOT_FOUND:
        total.verdict, total.reason = (
            Verdict.INCONCLUSIVE,
            "no bit of the mark could be read, so nothing was seen of it",
        )
    total.warnings = skipped + total.warnings
    if suspect.queries > before:
        left = None if suspect.budget is None else suspect.budget - before
        total.details |= {"queries": suspect.queries - before, "budget": left}
    return total


def summary(evidence: Evidence) -> Evidence:
    """Combined evidence with its verdict; a failed control of any part counts for all."""
    failed = [part.controls["failed"] for part in evidence.parts if part.controls.get("failed")]
    if failed:
        evidence.controls = {"failed": failed[0]}
    return evidence.decide()


def unreadable(method: str, skipped: list[str], error: InvalidInput) -> Evidence:
    """The evidence of a suspect in which the mark could not have been seen."""
    return Evidence(
        method=method,
        matches=0,
        trials=0,
        log2_p=0.0,
        log2_e=0.0,
        null="not tested",
        access="none",
        verdict=Verdict.INCONCLUSIVE,
        reason=str(error),
        warnings=skipped if len(skipped) > 1 else [],
    )


def invalid_claim(problems: list[str]) -> Evidence:
    """The evidence of a claim that is refused before the suspect is looked at."""
    return Evidence(
        method="claim",
        matches=0,
        trials=0,
        log2_p=0.0,
        log2_e=0.0,
        null="not tested",
        access="none",
        verdict=Verdict.INVALID,
        reason="; ".join(problems),
    )


def steps(most: int, step: int) -> list[int]:
    """`step`, 2 `step` ... up to `most`, which always ends it."""
    return [*range(step, most, step), *([most] if most > 0 else [])]
