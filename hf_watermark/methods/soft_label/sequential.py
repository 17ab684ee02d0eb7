"""The sequential test of a soft-label mark: answers in batches, e-values at checkpoints that are fixed in advance."""

import math

import numpy as np
import torch

from ...evidence import Access, Evidence, single
from ...keys import SubKey
from ...statistics import CheckpointTest, log2_p_from_log2_e
from ...verification.verifier import SequentialTest
from .verifier import SoftLabelVerifier


NULL = "signs are drawn by the key: e-values of Rademacher sums, averaged over checkpoints fixed in advance; p <= 1/E at any stopping time"
# Ratio of the queries at one checkpoint to those at the one before: each checkpoint costs a share of the e-value.
GROWTH = 1.5


class SignTest(SequentialTest):
    """
    The pool's images in the order of the sub-key's stream `order`. The suspect must answer an image the same whenever it is asked: that
    the test goes on tells one bit about the signs. Checkpoints are those of the whole pool, whatever the budget: a second run with a larger
    one goes on with the same test, and costs nothing.
    """

    access = Access.PROBABILITIES
    # The average over checkpoints that are still to come only grows.
    can_be_futile = False

    def __init__(self, verifier: SoftLabelVerifier, subkey: SubKey, most: int | None):
        self.verifier, self.classes = verifier, verifier.classes
        order = torch.from_numpy(subkey.stream("order").permutations(1, len(verifier.images))[0])
        every = checkpoints(len(verifier.sources), len(order), GROWTH)
        self.whole, self.checkpoints = len(order), len(every)
        self.stops = [stop for stop in every if most is None or stop <= most]
        self.order = order[: self.stops[-1] if self.stops else 0]
        self.images = verifier.images[self.order]
        # Sums at each checkpoint taken; no sign was used for them.
        self.sums: list[np.ndarray] = []

    def update(self, answers: torch.Tensor) -> None:
        self.sums.append(self.verifier.read(answers, self.order[: len(answers)]).sums)

    def score(self, subkey: SubKey) -> Evidence:
        test, signs = CheckpointTest(self.checkpoints), self.verifier.signs(subkey)
        for sums in self.sums:
            signed = sums * signs
            test.update(float(signed.sum()), signed)
        units = signed[signed != 0]
        return single(
            self.verifier.method,
            int(np.sum(units > 0)),
            len(units),
            log2_p_from_log2_e(test.log2_e),
            NULL,
            self.access,
            log2_e=test.log2_e,
            details={"units": len(units), "checkpoints": test.taken},
        )

    def best(self, answers: int) -> float:
        # A sign gives one bit at most, however many images were asked.
        taken = sum(stop <= answers for stop in self.stops)
        signs = len(self.verifier.features.mean) * self.classes
        return signs + math.log2(taken / self.checkpoints) if taken else 0.0


def checkpoints(first: int, most: int, growth: float) -> list[int]:
    """Numbers of queries at which the evidence is looked at, the last one at `most`."""
    if most < 1:
        return []
    stops, stop = [], float(min(first, most))
    while stop < most:
        stops.append(round(stop))
        stop = max(stop * growth, stop + 1)
    return [*stops, most]
