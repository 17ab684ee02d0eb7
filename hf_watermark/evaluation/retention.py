"""
What an attack costs the thief and what it leaves of a mark, as the reference toolbox defines them (Lukas et al., "SoK: How Robust is
Image Classification Deep Neural Network Watermarking?", https://huggingface.co/papers/2108.04974), so that tables can be compared.

These numbers stand next to the exact p-values of this package and replace none of them: the toolbox's threshold is a normal fit at
p = 0.05 that no verdict here uses.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

from ..statistics import binomial_min_matches


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
            Share of matches from which the mark counts as found, in [0, 1), see [`decision_threshold`] and [`exact_threshold`].
    """
    _check_counts(matches, trials)
    if not 0 <= threshold < 1:
        raise ValueError(
            f"threshold={threshold!r} is not usable; give a share of matches from 0 up to, not including, 1."
        )
    share = matches / trials
    return max(0.0, 0.5 / (1 - threshold) * share + (0.5 - threshold) / (1 - threshold))


def decision_threshold(null_matches: Sequence[int], trials: int, p: float = 0.05) -> float:
    """
    The toolbox's threshold: matches of null models are fitted by a normal distribution, and the least count whose distribution
    function is at least `1 - p` is taken as a share of `trials`, rounded up to two decimals. If all counts are equal, the toolbox
    falls back to the standard normal distribution.

    Args:
        null_matches (`Sequence[int]`):
            Matches of unmarked models, one per pair of model and key.
        trials (`int`):
            Elements of each mark.
        p (`float`, *optional*, defaults to 0.05):
            False positives that the fit allows.
    """
    if not null_matches:
        raise ValueError("null_matches is empty; give the matches of at least one unmarked model.")
    for matches in null_matches:
        _check_counts(matches, trials)
    _check_p(p)
    mean = sum(null_matches) / len(null_matches)
    variance = sum((matches - mean) ** 2 for matches in null_matches) / len(null_matches)
    fit = NormalDist(mean, math.sqrt(variance)) if variance else NormalDist()
    return _rounded_share(math.ceil(fit.inv_cdf(1 - p)), trials)


def exact_threshold(trials: int, p: float = 0.05, chance: float = 0.5) -> float:
    """
    The same threshold without null models, where matches of an unmarked model follow Bin(trials, chance) exactly: the least share
    whose upper tail is at most `p`. Not rounded.

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


def attack_succeeds(retained: float, loss: float, most: float = 0.05) -> bool:
    """
    Whether an attack has removed a mark at a bearable price: retention below 0.5 and a stealing loss below five percentage points.

    Args:
        retained (`float`):
            From [`retention`].
        loss (`float`):
            From [`stealing_loss`].
        most (`float`, *optional*, defaults to 0.05):
            The price that is no longer bearable.
    """
    return retained < 0.5 and loss < most


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """
    Indices of the attacks that no other beats: of points (stealing loss, retention), those for which no other has less or equal of
    both and less of one. In order of stealing loss.
    """
    best = []
    least = math.inf
    for index in sorted(range(len(points)), key=lambda index: points[index]):
        if points[index][1] < least:
            least = points[index][1]
            best.append(index)
    return best


def _rounded_share(count: int, trials: int) -> float:
    share = math.ceil(round(100 * count / trials, 9)) / 100
    return min(max(share, 0.0), 1.0)


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
