"""
The sequential black-box test (PROTOCOL.md §3.8): ask a few images at a time, stop as soon as the evidence is in, within a budget.

A method says what one sub-key asks and how answers become an e-value ([`~verification.verifier.SequentialTest`]); the loop here is the same for all of them.
e-values of different sub-keys multiply, whatever their methods, so the test goes on to the next sub-key where one was not enough.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..evidence import Access, Check, Evidence, combine, level_limit
from ..keys import SubKey
from ..serialization import InvalidInput, Unreadable
from ..suspects import AccessError, BudgetExceeded, Suspect
from .verifier import (
    SequentialTest,
    Verifier,
    decoy_control,
    decoys_of,
    digest_of,
    marked_as,
    summary,
    total_of,
    unreadable,
    with_skipped,
)


# So small an e-value of one sub-key that asking on for it is futile.
FUTILE = -10.0


@dataclass(frozen=True)
class SequentialResult:
    """
    Outcome of [`~verifying.verify_sequentially`].

    Args:
        evidence ([`Evidence`]):
            With the e-value reached; its p-value holds whenever the test stopped.
        queries (`int`):
            Images asked.
        budget (`int`, *optional*):
            Images that might have been asked.
    """

    evidence: Evidence
    queries: int
    budget: int | None


def run_sequentially(
    verifiers: Sequence[Verifier],
    suspect: Suspect,
    check: Check = Check(),
    before_asking: Callable[[SubKey], None] = lambda subkey: None,
) -> SequentialResult:
    """
    Asks for one sub-key after the other until the product of their e-values suffices for the verdict or the budget is spent. Where going on
    is futile for one sub-key, the next one is asked. An image that several sub-keys ask is asked once. Disclosed sub-keys are not asked.

    Args:
        verifiers (`Sequence[Verifier]`):
            Those without a sequential test (white-box methods) are left out.
        check ([`~evidence.Check`], *optional*):
            What the verifier decided beforehand, the budget among it.
        before_asking (`Callable`, *optional*):
            Called with every sub-key before its first image is shown to the suspect.

    Raises:
        [`~suspects.AccessError`]: when no method can be asked this way, or the suspect does not offer what the methods need.
        [`~suspects.BudgetExceeded`]: when so few images could not show the mark even if all of them matched; nothing is asked then.
    """
    wanted = math.log2(check.looks) - level_limit(check.bound)
    asked = _Asked(suspect, check.budget)
    if check.budget is not None:
        asked.need = _need(verifiers, suspect, check, wanted)
        if asked.need.reachable and check.budget < asked.need.images:
            raise BudgetExceeded(f"`budget` is too small: {asked.need.too_few(check.budget)}. Nothing was asked")
    parts: list[Evidence] = []
    for test, subkey in _tests(verifiers, asked, check):
        before, lost = sum(part.log2_e for part in parts), suspect.unusable
        queries, path, part = asked.queries, [], None
        suspect.refuse_no_pictures(test.images)
        before_asking(subkey)
        try:
            for stop in test.stops:
                answers = asked.answers(test, stop)
                test.update(answers)
                part = test.score(subkey)
                path.append([asked.queries, round(before + part.log2_e, 2)])
                if before + part.log2_e >= wanted or (test.can_be_futile and part.log2_e <= FUTILE):
                    asked.judged = True
                    break
            else:
                asked.cut, asked.judged = test.stops[-1] < test.whole, asked.judged or test.stops[-1] == test.whole
        except ConnectionError as error:
            raise ConnectionError(
                f"{error}. Sub-key {subkey.index} counts as shown to it and is burnt, except for going on there: a later check with the same key "
                "asks the same images first"
            ) from error
        except Unreadable as error:
            asked.errors[subkey.index] = error
            continue
        if part is None:
            continue
        asked.shown = test.can_be_futile and before + test.best(stop) >= wanted
        part = marked_as(part, subkey, check)
        part.queries, part.unusable = asked.queries - queries, suspect.unusable - lost
        part.details |= {"queries": asked.queries, "path": path}
        part.controls = decoy_control([test.score(decoy) for decoy in decoys_of(subkey, digest_of(answers))])
        parts.append(part.decide())
        if before + part.log2_e >= wanted:
            break
    evidence = _total(parts, asked, check)
    return SequentialResult(evidence, asked.queries, check.budget)


@dataclass(frozen=True)
class _Need:
    """The fewest images that can reach the level if all of them match; where none can, all that there are, and what these reach."""

    images: int
    reached: float
    wanted: float

    @property
    def reachable(self) -> bool:
        return self.reached >= self.wanted

    def too_few(self, images: int) -> str:
        said = f"{images} images cannot reach {self.wanted:.0f} bits"
        if self.reachable:
            return (
                f"{said} even if all match; this key needs about {self.images}, and more where the mark was weakened"
            )
        return f"{said}, and all {self.images} images of this key reach {self.reached:.0f} at best"


def _need(verifiers: Sequence[Verifier], suspect: Suspect, check: Check, wanted: float) -> _Need:
    images, reached = 0, 0.0
    for test, _ in _tests(verifiers, _Asked(suspect, None), check):
        for stop in test.stops:
            if reached + test.best(stop) >= wanted:
                return _Need(images + stop, reached + test.best(stop), wanted)
        images, reached = images + test.whole, reached + test.best(test.whole)
    return _Need(images, reached, wanted)


def _not_seen(parts: Sequence[Evidence], asked: "_Asked") -> str:
    """
    Why a mark may be there that was not found: the budget ended first. Empty where the images asked could have shown it (at least one sub-key
    to its end, or as many as reach the level) and speak against it.
    """
    if asked.need is None or not (asked.cut or asked.too_short):
        return ""
    if sum(part.log2_e for part in parts) > 0:
        return f"these {asked.queries} images speak for it, and the budget ended: raise it"
    if asked.judged or asked.shown:
        return ""
    if asked.queries < asked.need.images:
        return f"{asked.need.too_few(asked.queries)}: raise the budget"
    return f"the budget of {asked.budget} ended before the images of one sub-key did, and fewer cannot exclude such a mark: raise it"


def _tests(verifiers: Sequence[Verifier], asked: "_Asked", check: Check) -> Iterator[tuple[SequentialTest, SubKey]]:
    for verifier in verifiers:
        if verifier.access not in (Access.LABELS, Access.PROBABILITIES):
            continue
        try:
            asked.suspect.require(verifier.access, verifier.method)
        except AccessError as error:
            asked.skipped[verifier.method] = error
            continue
        for subkey in verifier.claim.subkeys:
            if subkey.index in check.disclosed:
                asked.spent.append(subkey.index)
                continue
            test = verifier.sequential(subkey, asked.left)
            if test is not None and not test.stops:
                asked.too_short.append(subkey.index)
            elif test is not None:
                yield test, subkey


def _total(parts: Sequence[Evidence], asked: "_Asked", check: Check) -> Evidence:
    errors: dict[str, InvalidInput] = {f"sub-key {index}": error for index, error in asked.errors.items()}
    if parts:
        methods = dict.fromkeys(part.method for part in parts)
        by_method = [summary(combine([p for p in parts if p.method == name], name)) for name in methods]
        total = total_of(by_method, check)
        for evidence in (parts[-1], by_method[-1], total):
            evidence.unread = evidence.unread or _not_seen(parts, asked)
            evidence.decide()
    elif errors or asked.spent or asked.too_short:
        total = unreadable("; ".join(dict.fromkeys(map(str, errors.values()))) or asked.why_not, check)
    else:
        raise AccessError(
            "; ".join(map(str, asked.skipped.values()))
            or "the key holds no method that can be asked in steps: white-box methods read weights; leave out `sequential`"
        )
    total.queries, total.unusable = asked.queries, asked.suspect.unusable - asked.lost
    total.details |= {"queries": asked.queries, "budget": check.budget}
    return with_skipped(total, asked.skipped | errors, asked.suspect, check)


class _Asked:
    """Answers by image, so that nothing is asked twice."""

    def __init__(self, suspect: Suspect, budget: int | None):
        self.suspect, self.budget = suspect, budget
        self.first, self.lost = suspect.queries, suspect.unusable
        self.known: dict[tuple[Access, bytes], torch.Tensor] = {}
        # Why methods and sub-keys were not asked, or not to the end.
        self.skipped: dict[str, InvalidInput] = {}
        self.errors: dict[int, InvalidInput] = {}
        self.spent: list[int] = []
        self.too_short: list[int] = []
        # The budget that suffices at best. Whether one sub-key was asked as long as that makes sense, whether the budget ended the last
        # one, and whether its images could have reached the level. Of soft labels nobody knows how many show them.
        self.need: _Need | None = None
        self.judged = self.cut = self.shown = False

    @property
    def queries(self) -> int:
        return self.suspect.queries - self.first

    @property
    def left(self) -> int | None:
        return None if self.budget is None else self.budget - self.queries

    @property
    def why_not(self) -> str:
        """Why no sub-key was asked at all."""
        if self.too_short:
            return f"its budget of {self.budget} images ends before the first answers can be judged; raise it"
        return f"every sub-key that could be asked was disclosed before ({', '.join(map(str, self.spent))})"

    def answers(self, test: SequentialTest, stop: int) -> torch.Tensor:
        names = [(test.access, image.numpy().tobytes()) for image in test.images[:stop].contiguous()]
        new = [place for place, name in enumerate(names) if name not in self.known]
        if new:
            ask = self.suspect.labels if test.access is Access.LABELS else self.suspect.probabilities
            for place, answer in zip(new, ask(test.images[new], test.classes), strict=True):
                self.known[names[place]] = answer
        return torch.stack([self.known[name] for name in names])
