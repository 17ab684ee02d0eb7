"""`Verifier`: what all methods' verifiers share: access, decoy controls, and the way to one evidence."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch

from ..configuration import WatermarkConfig
from ..evidence import COMBINED, CONTROL_LIMIT, Access, Check, Evidence, SkipKind, Skipped, Verdict, combine
from ..keys import Claim, CommitmentProblem, SubKey, in_words
from ..serialization import InvalidInput, Unreadable
from ..statistics import log2_binomial_tail
from ..suspects import AccessError, BudgetExceeded, Suspect
from .purpose import at_cross_purposes


Observation = TypeVar("Observation")
DECOYS = 100
# Of so many answers or more this share for one class is told.
LEAST_ANSWERS, ALIKE = 40, 0.9


class SequentialTest(ABC):
    """
    What one sub-key asks, in an order that is fixed before the first answer, and the e-value of the answers so far.

    Attributes:
        images (`torch.Tensor`): `[n, channels, height, width]` in the order of asking.
        stops (`list[int]`): Rising numbers of answers at which the e-value may be looked at.
        whole (`int`): How many images the sub-key has to ask, whatever the budget.
        access ([`~evidence.Access`]): `LABELS` or `PROBABILITIES`.
        classes (`int`): Number of classes.
    """

    images: torch.Tensor
    stops: list[int]
    whole: int
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

    @abstractmethod
    def best(self, answers: int) -> float:
        """log2 of an e-value that so many answers cannot exceed, if all of them match."""


class Verifier(ABC, Generic[Observation]):
    """
    Reads one method's mark. Needs a claim (parameters and disclosed sub-keys) and a suspect; no data set, no trainer.

    A subclass says how to observe the suspect and how to score the observation under a sub-key. The score must be an exact
    p-value under the null that the sub-key's bits are independent of the suspect.

    Args:
        claim ([`~keys.Claim`]):
            Method parameters, disclosed sub-keys, pool and model record: derived from the key or committed, and nothing else.

    Raises:
        [`~serialization.InvalidInput`]: for parameters that no honest owner could have committed to.

    Example:

    ```python
    >>> claim = key.claims()[0]
    >>> verifier = AutoVerifier.for_method(claim.assignment.method)(claim)
    >>> [part.rate for part in verifier.verify(Suspect.open("my-model"))]
    [1.0, 1.0]
    ```
    """

    config_class: ClassVar[type[WatermarkConfig]]
    method: ClassVar[str]  # that of the config
    access: ClassVar[Access]
    # Whether triggers are made from a pool. Then the layout must commit to it: free images are free triggers.
    needs_pool: ClassVar[bool] = False
    # Whether what it reads depends on the order, scale or basis of the suspect's channels, which an alignment can bring back.
    reads_coordinates: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "config_class" in vars(cls):
            cls.method = cls.config_class.method

    def __init__(self, claim: Claim):
        self.claim = claim
        self.config: Any = self.config_class.from_dict(claim.assignment.config)
        self.layout = claim.assignment.layout
        if self.needs_pool != (self.layout.get("pool_sha256") is not None):
            what = (
                "without the digest of its pool" if self.needs_pool else "with a pool, which this method has none of"
            )
            raise InvalidInput(f"layout: `{self.method}` {what}; the key was not made by this method")
        named, classes = len(claim.context.classes), self.layout.get("classes")
        if named and classes is not None and classes != named:
            raise InvalidInput(f"layout: {classes} classes, but the owner's model has {named} class names")

    @abstractmethod
    def observe(self, suspect: Suspect, subkey: SubKey, check: Check = Check()) -> Observation:
        """Reads or queries the suspect. May depend on the sub-key's positions or triggers, never on its bits or labels."""

    @abstractmethod
    def score(self, observation: Observation, subkey: SubKey) -> Evidence:
        """The exact test of one sub-key."""

    @abstractmethod
    def fingerprint(self, observation: Observation) -> bytes:
        """What was read of the suspect, as 32 bytes: two verifiers who read the same draw the same decoys."""

    def sequential(self, subkey: SubKey, most: int | None) -> SequentialTest | None:
        """
        The sequential test of one sub-key with at most `most` images (all by default); `None` where the method has none, or nothing can
        be asked.
        """
        return None

    def verify(self, suspect: Suspect, check: Check = Check(), decoys: int = DECOYS) -> list[Evidence]:
        """
        One evidence per sub-key at hand, each with its decoy controls.

        Args:
            check ([`~evidence.Check`], *optional*):
                What the verifier decided beforehand.
            decoys (`int`):
                Number of decoy keys sent through the same code on the same observation.
        """
        suspect.require(self.access, self.method)
        parts = []
        for subkey in self.claim.subkeys:
            asked, lost = suspect.queries, suspect.unusable
            observation = self.observe(suspect, subkey, check)
            part = marked_as(self.score(observation, subkey), subkey, check)
            part.queries, part.unusable = suspect.queries - asked, suspect.unusable - lost
            seed = self.fingerprint(observation)
            # A sub-key that others know proves nothing, whatever its decoys say.
            count = 0 if part.disclosed else decoys
            part.controls = decoy_control([self.score(observation, decoy) for decoy in decoys_of(subkey, seed, count)])
            parts.append(part.decide())
        return parts


def marked_as(part: Evidence, subkey: SubKey, check: Check) -> Evidence:
    """The evidence of one sub-key with what the verifier decided; changes and returns it."""
    part.bound, part.basis = check.bound, check.basis
    part.subkey, part.disclosed = subkey.index, subkey.index in check.disclosed
    part.details["subkey"] = subkey.index
    return part


def decoys_of(subkey: SubKey, seed: bytes, count: int = DECOYS) -> list[SubKey]:
    """Decoy keys that follow from the sub-key and from what was read of the suspect: the same for everybody who repeats the check."""
    return [subkey.decoy(seed + number.to_bytes(4, "big")) for number in range(count)]


def digest_of(*read: torch.Tensor | np.ndarray) -> bytes:
    """SHA-256 of what was read."""
    total = hashlib.sha256()
    for item in read:
        array = np.ascontiguousarray(item.detach().cpu().numpy() if isinstance(item, torch.Tensor) else item)
        total.update(f"{array.dtype.str}:{array.shape}\n".encode())
        total.update(array.data if array.size else b"")
    return total.digest()


def said_alike(labels: torch.Tensor | np.ndarray) -> list[str]:
    """A warning where nearly all questions got one answer: then it may be the questions that a suspect cannot read."""
    given = np.asarray(labels).reshape(-1)
    given = given[given >= 0]
    if len(given) < LEAST_ANSWERS:
        return []
    most = int(np.bincount(given).argmax())
    if float((given == most).mean()) < ALIKE:
        return []
    return [
        f"nearly all answers are class {most}: the suspect may take images of another range or normalisation than the key's (0 to 255, say); "
        "put it behind a function that brings them there"
    ]


def decoy_control(scores: Sequence[Evidence]) -> dict[str, Any]:
    """
    Summary of decoy keys. They fail as a control when one of them has a p-value that none of so many should have, or when too many of them
    pass 5 %: then the null does not hold on this suspect. All limits of a check together fail a true mark once in 10^9 checks.
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
    if min(values) <= CONTROL_LIMIT - math.log2(len(scores)):
        control["failed"] = f"a decoy key reached log2 p = {min(values):.1f}"
    elif log2_binomial_tail(below, len(scores), 0.05) <= CONTROL_LIMIT:
        control["failed"] = f"{below} of {len(scores)} decoy keys pass 5 %"
    return control


def verify_claims(verifiers: Sequence[Verifier], suspect: Suspect, check: Check = Check()) -> Evidence:
    """
    Runs every verifier that the suspect gives access to and combines their sub-keys. A suspect that none of them can read gives the verdict
    `inconclusive`.

    Raises:
        [`~suspects.AccessError`]: when the suspect offers what none of the methods needs.
        [`~serialization.InvalidInput`]: when no check could be run for another reason than the suspect's form.
    """
    before, lost = suspect.queries, suspect.unusable
    by_method: list[Evidence] = []
    errors: dict[str, InvalidInput] = {}
    for verifier in verifiers:
        try:
            parts = verifier.verify(suspect, check)
        except InvalidInput as error:
            # One method that cannot run must not hide what the others see; if none can, the caller gets the error.
            errors[verifier.method] = error
            continue
        by_method.append(summary(combine(parts, verifier.method)))
    if by_method:
        total = total_of(by_method, check)
    else:
        others = [error for error in errors.values() if not isinstance(error, Unreadable)]
        if others:
            # What is wrong with a method that could be tried says more than that another one could not.
            raise min(others, key=lambda error: type(error) is AccessError)
        reasons = "; ".join(dict.fromkeys(map(str, errors.values())))
        reasons += "".join(
            f"; {said}" for said in (suspect.stored_as and f"stored as {suspect.stored_as}", suspect.unread) if said
        )
        purpose = at_cross_purposes([verifier.claim for verifier in verifiers], suspect)
        total = unreadable(f"{reasons.rstrip('.')}. {purpose}", check)
    total.queries, total.unusable = suspect.queries - before, suspect.unusable - lost
    return with_skipped(total, errors, suspect, check)


def total_of(by_method: Sequence[Evidence], check: Check) -> Evidence:
    """One evidence from those of several methods; looks are charged once."""
    leaves = [leaf for evidence in by_method for leaf in evidence.parts]
    if len(by_method) == 1:
        return summary(combine(leaves, by_method[0].method, check.looks))
    total = summary(combine(leaves, COMBINED, check.looks))
    total.parts = list(by_method)
    return total


def with_skipped(total: Evidence, errors: dict[str, InvalidInput], suspect: Suspect, check: Check) -> Evidence:
    """Names the methods that could not run, and says `not found` only where all that the suspect offers was read."""
    total.skipped = [Skipped(method, str(error), _kind(error)) for method, error in errors.items()]
    total.warnings = [*map(str, total.skipped), *suspect.notes, *total.warnings]
    unread = [skipped for skipped in total.skipped if skipped.kind is SkipKind.UNREADABLE]
    if unread and not total.unread:
        total.unread = f"{', '.join(skipped.method for skipped in unread)} could not be read: {unread[0].reason}"
    if suspect.unread and not total.unread:
        total.unread = suspect.unread
    if total.queries:
        total.details |= {"queries": total.queries, "budget": check.budget}
    return total.decide()


def _kind(error: InvalidInput) -> SkipKind:
    # Labels where probabilities are read from are both: not offered, and a reason not to say "not found".
    if isinstance(error, Unreadable):
        return SkipKind.UNREADABLE
    if isinstance(error, BudgetExceeded):
        return SkipKind.BUDGET
    return SkipKind.ACCESS if isinstance(error, AccessError) else SkipKind.OTHER


def summary(evidence: Evidence) -> Evidence:
    """Combined evidence with its verdict; a failed control of any part counts for all."""
    failed = [part.controls["failed"] for part in evidence.parts if part.controls.get("failed")]
    if failed:
        evidence.controls = {"failed": failed[0]}
    return evidence.decide()


def unreadable(reason: str, check: Check = Check()) -> Evidence:
    """The evidence of a suspect that cannot be read under this key: nothing was seen, so nothing is said about a mark."""
    return undecided(f"the suspect could not be read: {reason}", check)


def undecided(reason: str, check: Check = Check()) -> Evidence:
    """The evidence of a suspect that was not read, because nothing could follow from it."""
    return _untested("none", bound=check.bound, basis=check.basis, looks=check.looks, unread=reason).decide()


def invalid_claim(problems: Sequence[CommitmentProblem | str]) -> Evidence:
    """The evidence of a claim that is refused before the suspect is looked at."""
    return _untested("claim", verdict=Verdict.INVALID, reason=in_words(problems))


def _untested(method: str, **fields: Any) -> Evidence:
    return Evidence(method, 0, 0, log2_p=0.0, log2_e=0.0, null="not tested", access=frozenset(), **fields)


def steps(most: int, step: int) -> list[int]:
    """`step`, 2 `step` ... up to `most`, which always ends it."""
    return [*range(step, most, step), *([most] if most > 0 else [])]
