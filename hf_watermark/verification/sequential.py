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
from ..suspects import AccessError, Suspect
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
    """
    wanted = math.log2(check.looks) - level_limit(check.bound)
    asked = _Asked(suspect, check.budget)
    parts: list[Evidence] = []
    for test, subkey in _tests(verifiers, asked, check):
        before, lost = sum(part.log2_e for part in parts), suspect.unusable
        queries, path, part = asked.queries, [], None
        before_asking(subkey)
        try:
            for stop in test.stops:
                answers = asked.answers(test, stop)
                test.update(answers)
                part = test.score(subkey)
                path.append([asked.queries, round(before + part.log2_e, 2)])
                if before + part.log2_e >= wanted or (test.can_be_futile and part.log2_e <= FUTILE):
                    break
        except Unreadable as error:
            asked.errors[subkey.index] = error
            continue
        if part is None:
            continue
        part = marked_as(part, subkey, check)
        part.queries, part.unusable = asked.queries - queries, suspect.unusable - lost
        part.details |= {"queries": asked.queries, "path": path}
        part.controls = decoy_control([test.score(decoy) for decoy in decoys_of(subkey, digest_of(answers))])
        parts.append(part.decide())
        if before + part.log2_e >= wanted:
            break
    evidence = _total(parts, asked, check)
    return SequentialResult(evidence, asked.queries, check.budget)


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
