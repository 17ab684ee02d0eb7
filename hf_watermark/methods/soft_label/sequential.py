"""A test that asks in batches and stops as soon as the evidence is in, within a budget of queries."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...evidence import LEVEL_B, LEVEL_N, Evidence, single
from ...keys import NO_BEACON, WatermarkKey
from ...statistics import CheckpointTest, log2_p_from_log2_e
from ...suspects import Suspect
from .verifier import CSPVerifier, SoftLabelVerifier, USPVerifier


NULL = "signs are drawn by the key: e-values of Rademacher sums, averaged over checkpoints fixed in advance; p <= 1/E at any stopping time"
VERIFIERS: dict[str, type[SoftLabelVerifier]] = {"usp": USPVerifier, "csp": CSPVerifier}


@dataclass(frozen=True)
class SequentialResult:
    """
    Outcome of [`verify_sequentially`].

    Args:
        evidence ([`Evidence`]):
            With the e-value reached; its p-value holds whenever the test stopped.
        queries (`int`):
            Images asked.
        budget (`int`):
            Images that might have been asked.
    """

    evidence: Evidence
    queries: int
    budget: int


def verify_sequentially(
    suspect: Any, key: WatermarkKey, budget: int | None = None, looked_up: bytes | None = None, growth: float = 1.5
) -> SequentialResult:
    """
    Asks the pool's images in the order of the key's stream `order`, a growing number at a time, and stops at the first checkpoint at
    which the e-value suffices for a claim. The suspect must answer an image the same whenever it is asked: that the test goes on tells
    one bit about the signs.

    Args:
        suspect:
            Whatever [`verify`] takes, if it gives probabilities.
        key ([`WatermarkKey`]):
            A key of method `usp` or `csp`; its first sub-key is tested.
        budget (`int`, *optional*):
            Most images to ask; all of the pool by default.
        looked_up (`bytes`, *optional*):
            The public beacon, looked up by the verifier; equal to the key's it makes level B enough.
        growth (`float`, *optional*, defaults to 1.5):
            Ratio of the queries at one checkpoint to those at the one before.

    Example:

    ```python
    >>> result = verify_sequentially(endpoint, key, budget=200)
    >>> result.queries, result.evidence.verdict
    ```
    """
    claims = [claim for claim in key.claims() if claim.assignment.method in VERIFIERS]
    if not claims:
        raise ValueError("the key holds no method `usp` or `csp`; use verify(suspect, key)")
    if growth <= 1:
        raise ValueError(f"`growth` is {growth}: choose a ratio above 1; 1.5 is the default")
    verifier, subkey = VERIFIERS[claims[0].assignment.method](claims[0]), claims[0].subkeys[0]
    most = len(verifier.images) if budget is None else min(budget, len(verifier.images))
    if most < 1:
        raise ValueError(f"`budget` is {budget}: at least one image has to be asked")
    bound = looked_up is not None and looked_up == key.beacon != NO_BEACON
    wanted = -(LEVEL_B if bound else LEVEL_N)
    opened = Suspect.open(suspect, key.backbone)
    order = torch.from_numpy(subkey.stream("order").permutations(1, len(verifier.images))[0])
    stops = checkpoints(len(verifier.sources), most, growth)
    test, signs = CheckpointTest(len(stops)), verifier.signs(subkey)
    answers = torch.empty(0, verifier.classes, dtype=torch.float64)
    for stop in stops:
        asked = opened.probabilities(verifier.images[order[len(answers) : stop]], verifier.classes)
        answers = torch.cat([answers, asked])
        signed = verifier.read(answers, subkey, order[:stop]).sums * signs
        if test.update(float(signed.sum()), signed) >= wanted:
            break
    units = signed[signed != 0]
    evidence = single(
        verifier.method,
        int(np.sum(units > 0)),
        len(units),
        log2_p_from_log2_e(test.log2_e),
        NULL,
        verifier.access,
        log2_e=test.log2_e,
        bound=bound,
        details={"queries": len(answers), "budget": most, "checkpoints": test.taken},
    )
    return SequentialResult(evidence.decide(), len(answers), most)


def checkpoints(first: int, most: int, growth: float) -> list[int]:
    """Numbers of queries at which the evidence is looked at, the last one at `most`."""
    stops, stop = [], float(min(first, most))
    while stop < most:
        stops.append(round(stop))
        stop = max(stop * growth, stop + 1)
    return [*stops, most]
