"""Retention of a model that may carry several marks."""

from collections.abc import Mapping
from typing import Any

from ..retention import exact_threshold, retention


# Chance of one match under an unrelated key at ten classes, and answers that share one draw of the key.
CHANCE = {"function_coupled": (1 / 8, 10), "certified": (1 / 9, 1)}
SIGNS = (1 / 2, 1)
# So few units that match prove nothing.
FEWEST = 8


def best_retention(parts: Mapping[str, Mapping[str, Any]]) -> float:
    """
    What is left of a mark: the best of its methods, because a thief has to remove all of them.

    Args:
        parts (`Mapping`):
            Per method `matches` and `trials`; 0 where nothing could be read.
    """
    values = [0.0]
    for method, part in parts.items():
        chance, shared = CHANCE.get(method, SIGNS)
        units = part["trials"] // shared
        if units >= FEWEST:
            values.append(retention(part["matches"], part["trials"], exact_threshold(units, chance=chance)))
    return max(values)
