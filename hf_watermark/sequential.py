"""
The sequential black-box test (protocol.md §3.8): ask a few images at a time, stop as soon as the evidence is in, within a budget.

A method says what one sub-key asks and how answers become an e-value ([`~verifier.SequentialTest`]); the loop here is the same for all of them.
e-values of different sub-keys multiply, whatever their methods, so the test goes on to the next sub-key where one was not enough.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .evidence import LEVEL_B, LEVEL_N, Access, Evidence, combine
from .keys import SubKey
from .suspects import AccessError, Suspect
from .verifier import DECOYS, SequentialTest, Verifier, decoy_control, summary


# So small an e-value of all sub-keys together that asking on is futile.
FUTILE = -10.0


@dataclass(frozen=True)
class SequentialResult:
    """
    Outcome of [`~mapping.verify_sequentially`].

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
    verifiers: Sequence[Verifier], suspect: Suspect, bound: bool, budget: int | None = None, looks: int = 1
) -> SequentialResult:
    """
    Asks for one sub-key after the other until the product of their e-values suffices for the verdict, the budget is spent, or going on is
    futile. An image that several sub-keys ask is asked once.

    Args:
        verifiers (`Sequence[Verifier]`):
            Those without a sequential test (white-box methods) are left out.
        bound (`bool`):
            Whether the key is bound to a public beacon, so that level B is enough.
        budget (`int`, *optional*):
            Most images to ask.

    Raises:
        [`~suspects.AccessError`]: when no method can be asked this way, or the suspect does not offer what the methods need.
    """
    wanted = math.log2(looks) - (LEVEL_B if bound else LEVEL_N)
    asked = _Asked(suspect, budget)
    parts: list[Evidence] = []
    for test, subkey in _tests(verifiers, asked):
        before = sum(part.log2_e for part in parts)
        path = []
        for stop in test.stops:
            test.update(asked.answers(test, stop))
            part = test.score(subkey)
            path.append([asked.queries, round(before + part.log2_e, 2)])
            if before + part.log2_e >= wanted or (test.can_be_futile and before + part.log2_e <= FUTILE):
                break
        part.bound = bound
        part.details |= {"subkey": subkey.index, "queries": asked.queries, "path": path}
        part.controls = decoy_control([test.score(subkey.decoy()) for _ in range(DECOYS)])
        parts.append(part.decide())
        if not FUTILE < before + part.log2_e < wanted:
            break
    if not parts:
        raise AccessError(
            "; ".join(asked.skipped)
            or "the key holds no method that can be asked in steps: white-box methods read weights; leave out `sequential`"
        )
    evidence = _total(parts, looks)
    evidence.warnings = asked.skipped + evidence.warnings
    evidence.details |= {"queries": asked.queries, "budget": budget}
    return SequentialResult(evidence, asked.queries, budget)


def _tests(verifiers: Sequence[Verifier], asked: "_Asked") -> Iterator[tuple[SequentialTest, SubKey]]:
    for verifier in verifiers:
        if verifier.access not in (Access.LABELS, Access.PROBABILITIES):
            continue
        try:
            asked.suspect.require(verifier.access, verifier.method)
        except AccessError as error:
            asked.skipped.append(f"{verifier.method} was not checked: {error}")
            continue
        for subkey in verifier.claim.subkeys:
            test = verifier.sequential(subkey, asked.left)
            if test is not None and test.stops:
                yield test, subkey


def _total(parts: list[Evidence], looks: int) -> Evidence:
    methods = list(dict.fromkeys(part.method for part in parts))
    if len(methods) == 1:
        return summary(combine(parts, methods[0], looks))
    total = summary(combine(parts, "combined", looks))
    total.parts = [summary(combine([part for part in parts if part.method == name], name)) for name in methods]
    return total


class _Asked:
    """Answers by image, so that nothing is asked twice."""

    def __init__(self, suspect: Suspect, budget: int | None):
        self.suspect, self.budget = suspect, budget
        self.first = suspect.queries
        self.known: dict[tuple[Access, bytes], torch.Tensor] = {}
        self.skipped: list[str] = []

    @property
    def queries(self) -> int:
        return self.suspect.queries - self.first

    @property
    def left(self) -> int | None:
        return None if self.budget is None else self.budget - self.queries

    def answers(self, test: SequentialTest, stop: int) -> torch.Tensor:
        names = [(test.access, image.numpy().tobytes()) for image in test.images[:stop].contiguous()]
        new = [place for place, name in enumerate(names) if name not in self.known]
        if new:
            ask = self.suspect.labels if test.access is Access.LABELS else self.suspect.probabilities
            for place, answer in zip(new, ask(test.images[new], test.classes), strict=True):
                self.known[names[place]] = answer
        return torch.stack([self.known[name] for name in names])
