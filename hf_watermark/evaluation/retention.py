"""
What an attack costs the thief and what it leaves of a mark, as the reference toolbox defines them (Lukas et al., "SoK: How Robust is
Image Classification Deep Neural Network Watermarking?", https://huggingface.co/papers/2108.04974), so that tables can be compared.

These numbers stand next to the exact p-values of this package and replace none of them: the toolbox's threshold is a normal fit at
p = 0.05 that no verdict here uses.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..statistics import binomial_min_matches


# So few units that match prove nothing.
FEWEST = 8


def stealing_loss(clean_accuracy: float, attacked_accuracy: float) -> float:
    """
    Test accuracy that the attack costs: of the unmarked reference model (the twin) minus that of the attacked model. Negative where
    the attacked model is better.

    Args:
        clean_accuracy (`float`):
            Test accuracy, in [0, 1], of the unmarked model of the same recipe.
        attacked_accuracy (`float`):
            Test accuracy, in [0, 1], of the model after the attack.

    Returns:
        `float`: In units of accuracy: 0.05 is five percentage points.
    """
    _check_share("clean_accuracy", clean_accuracy)
    _check_share("attacked_accuracy", attacked_accuracy)
    return clean_accuracy - attacked_accuracy


def embedding_loss(clean_accuracy: float, marked_accuracy: float) -> float:
    """Test accuracy that the mark itself costs: of the unmarked model minus that of the marked one. As [`stealing_loss`]."""
    _check_share("clean_accuracy", clean_accuracy)
    _check_share("marked_accuracy", marked_accuracy)
    return clean_accuracy - marked_accuracy


def retention(matches: int, trials: int, threshold: float) -> float:
    """
    Rescaled watermark accuracy: 1 when every element matches, 0.5 exactly at the threshold, 0 far below it. With share `a` of matches
    and threshold `t`: `0.5 / (1 - t) * a + (0.5 - t) / (1 - t)`, not below 0.

    Args:
        matches (`int`):
            Elements of the mark that agree: bits, or triggers with the wanted answer.
        trials (`int`):
            Elements that were looked at.
        threshold (`float`):
            Share of matches from which the mark counts as found, in [0, 1), see [`exact_threshold`].
    """
    _check_counts(matches, trials)
    if not 0 <= threshold < 1:
        raise ValueError(
            f"threshold={threshold!r} is not usable; give a share of matches from 0 up to, not including, 1."
        )
    share = matches / trials
    return max(0.0, 0.5 / (1 - threshold) * share + (0.5 - threshold) / (1 - threshold))


def exact_threshold(trials: int, p: float = 0.05, chance: float = 0.5) -> float:
    """
    The share from which a mark counts as found at `p`: matches of an unmarked model follow Bin(trials, chance) exactly, so no null models
    have to be fitted, as the toolbox does.

    Args:
        trials (`int`):
            Elements of the mark.
        p (`float`, *optional*, defaults to 0.05):
            False positives.
        chance (`float`, *optional*, defaults to 0.5):
            Chance of one match under the null: 1/2 for bits, 1/(C-1) for rules on C classes.

    Raises:
        `ValueError`: where only a full match, or nothing, has so small a tail: retention has no scale then.
    """
    _check_counts(0, trials)
    _check_p(p)
    if not 0 < chance < 1:
        raise ValueError(f"chance={chance!r} is not usable; give the chance of one match, between 0 and 1.")
    count = binomial_min_matches(trials, math.log2(p), chance)
    if count is None or count == trials:
        raise ValueError(f"trials={trials!r} is not usable; so few elements have no threshold below 1 at p={p:g}.")
    return count / trials


def best_retention(parts: Iterable[Mapping[str, Any]]) -> float:
    """
    What is left of a model's marks: the best of them, because a thief has to remove all.

    Args:
        parts (`Iterable[Mapping]`):
            Per method `matches` and `trials` (0 where nothing could be read), and the null: `chance` and `shared`, see [`~configuration.facts.Null`].
    """
    values = [0.0]
    for part in parts:
        units = part["trials"] // part["shared"]
        if units >= FEWEST:
            threshold = exact_threshold(units, chance=part["chance"])
            values.append(retention(part["matches"], part["trials"], threshold))
    return max(values)


def _check_share(field: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{field}={value!r} is not usable; give an accuracy from 0 to 1.")


def _check_counts(matches: int, trials: int) -> None:
    if trials < 1:
        raise ValueError(f"trials={trials!r} is not usable; give a positive whole number.")
    if not 0 <= matches <= trials:
        raise ValueError(f"matches={matches!r} is not usable; give a whole number from 0 to trials={trials}.")


def _check_p(p: float) -> None:
    if not 0 < p < 1:
        raise ValueError(f"p={p!r} is not usable; give a probability between 0 and 1.")
