"""Stealing loss and retention, the two axes of the watermark-robustness toolbox (Lukas et al., S&P 2022)."""

import math
from collections.abc import Mapping
from typing import Any

from ...statistics import binomial_min_matches


# Chance of one match under an unrelated key at ten classes, and answers that share one draw of the key.
CHANCE = {"function_coupled": (1 / 8, 10), "certified": (1 / 9, 1)}
SIGNS = (1 / 2, 1)
LOG2_5_PERCENT = math.log2(0.05)


def stealing_loss(reference_accuracy: float, accuracy: float) -> float:
    """Accuracy that a thief gives up against the unmarked reference; negative where his copy is better."""
    return reference_accuracy - accuracy


def rescaled(rate: float, threshold: float) -> float:
    """Match rate on the scale where 1 is all and 0.5 the threshold at p = 0.05; not below 0."""
    return max(0.0, 0.5 / (1 - threshold) * rate + (0.5 - threshold) / (1 - threshold))


def retention(parts: Mapping[str, Mapping[str, Any]]) -> float:
    """
    What is left of a mark: the best of its methods, because a thief has to remove all of them.

    Args:
        parts (`Mapping`):
            Per method `matches` and `trials`.
    """
    values = []
    for method, part in parts.items():
        chance, shared = CHANCE.get(method, SIGNS)
        trials = part["trials"]
        if not trials:
            values.append(0.0)
            continue
        units = max(1, trials // shared)
        least = binomial_min_matches(units, LOG2_5_PERCENT, chance)
        values.append(rescaled(part["matches"] / trials, min(least or units, units) / units if units > 1 else 0.99))
    return max(values, default=0.0)
