"""Exact tails of known laws, as base-2 logarithms so that nothing underflows."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from operator import index

import numpy as np

from .checks import check_probability


LN2 = math.log(2)
# Above this, the exact binomial coefficient costs more time than its last digits are worth (0.1 s at 100,000).
_EXACT_TRIALS = 10_000
_RELABEL_CHUNK = 256


def log2_binomial_tail(matches: int, trials: int, p: float = 0.5) -> float:
    """
    Base-2 logarithm of `P(Bin(trials, p) >= matches)`.

    Correct far below the smallest float (2^-5000 and less); an outcome whose every trial matches at `p=0.5` gives
    exactly `-trials`.

    Args:
        matches (`int`): Observed matches, at most `trials`. Zero or less gives 0.0.
        trials (`int`): Number of independent trials.
        p (`float`, *optional*, defaults to 0.5): Chance of one match under the null, strictly between 0 and 1.

    Returns:
        `float`: log2 of the p-value, at most 0.
    """
    matches, trials = index(matches), index(trials)
    check_probability("p", p)
    if trials < 0 or matches > trials:
        raise ValueError(f"matches={matches} of trials={trials}: pass 0 <= trials and matches <= trials.")
    return log2_upper_tail(matches, trials, p, 1 - p)


def binomial_min_matches(trials: int, log2_p_max: float, p: float = 0.5) -> int | None:
    """
    Smallest number of matches whose p-value is at most `2**log2_p_max`.

    Args:
        trials (`int`): Number of independent trials.
        log2_p_max (`float`): log2 of the largest admissible p-value, for example -64.
        p (`float`, *optional*, defaults to 0.5): Chance of one match under the null.

    Returns:
        `int` or `None`: The threshold, or `None` where even `trials` matches are not enough.
    """
    if log2_binomial_tail(trials, trials, p) > log2_p_max:
        return None
    low, high = 0, trials
    while low < high:
        middle = (low + high) // 2
        if log2_binomial_tail(middle, trials, p) <= log2_p_max:
            high = middle
        else:
            low = middle + 1
    return low


def log2_relabel_tail(
    predictions: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], targets: Sequence[int]
) -> tuple[float, int]:
    """
    Exact relabel test: the answers stay as they are, the targets are redrawn in every possible way.

    Each rule's target was drawn uniformly from its candidates, independently of the other rules and of the answers,
    so the total number of matches follows a convolution over rules whatever made the answers dependent or uneven
    inside a rule. Summed with integers, without rounding.

    Args:
        predictions (`Sequence[Sequence[int]]`): Answers per rule; rules may differ in length.
        candidates (`Sequence[Sequence[int]]`): Distinct labels per rule from which its target was drawn.
        targets (`Sequence[int]`): The label that was drawn for each rule.

    Returns:
        `tuple[float, int]`: log2 of P(matches >= observed) and the observed matches.
    """
    if not len(predictions) == len(candidates) == len(targets):
        raise ValueError(
            f"Got {len(predictions)} predictions, {len(candidates)} candidates and {len(targets)} targets: "
            "pass one entry of each per rule."
        )
    scores, matches = [], 0
    for rule, (answers, allowed, target) in enumerate(zip(predictions, candidates, targets, strict=True)):
        labels, target = [index(label) for label in allowed], index(target)
        if len(set(labels)) != len(labels) or target not in labels:
            raise ValueError(f"Rule {rule}: candidates {labels} must be distinct and contain the target {target}.")
        agreement = Counter(index(answer) for answer in answers)
        scores.append([agreement[label] for label in labels])
        matches += agreement[target]
    return LabelLaw(scores).log2_tail(matches), matches


class LabelLaw:
    """
    Exact law of the number of matches when each rule's label is redrawn uniformly from its candidates. One law serves the key's own
    labels and those of any number of decoys.

    Args:
        scores (`Sequence[Sequence[int]]`): For each rule the matches that each candidate label would earn, not negative.
    """

    def __init__(self, scores: Sequence[Sequence[int]]):
        self._draws = math.prod(len(row) for row in scores)
        # The law is a polynomial in x = 2**width: coefficient m counts the draws that sum to m. No coefficient exceeds
        # `draws`, so neighbours cannot run into each other, and multiplying by x**m is a shift.
        width = self._draws.bit_length()
        law = 1
        for row in scores:
            law = sum(times * (law << (width * index(score))) for score, times in Counter(row).items())
        mask, coefficients = (1 << width) - 1, []
        raw = law.to_bytes((law.bit_length() + 7) // 8 + 1, "little")
        for place in range(0, law.bit_length(), width):
            # Sliced out of bytes: shifting the whole number down again and again would be quadratic.
            piece = int.from_bytes(raw[place // 8 : (place + width) // 8 + 1], "little")
            coefficients.append((piece >> (place % 8)) & mask)
        self._favourable = list(accumulate(reversed(coefficients)))[::-1]

    def log2_tail(self, observed: int) -> float:
        """log2 of P(sum >= observed). An unreachable sum raises, because it means that score and law do not belong together."""
        if observed <= 0:
            return 0.0
        if observed >= len(self._favourable):
            raise ValueError(f"observed={observed} is more than any draw can reach ({len(self._favourable) - 1}).")
        return math.log2(self._favourable[observed]) - math.log2(self._draws)


def relabel_tails(counts: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """
    Float twin of [`log2_relabel_tail`] for many keys at once (calibration runs).

    Only positive terms are added, so the relative error stays near 1e-13; p-values below 1e-300 underflow.

    Args:
        counts (`np.ndarray` of shape `(keys, rules, candidates)`): How many answers of a rule equal each candidate.
        hits (`np.ndarray` of shape `(keys,)`): Matches with the key's own targets, summed over rules.

    Returns:
        `np.ndarray` of shape `(keys,)`: p-values (not logarithms).
    """
    counts, hits = np.asarray(counts), np.asarray(hits)
    if counts.ndim != 3 or hits.shape != counts.shape[:1]:
        raise ValueError(f"counts {counts.shape} and hits {hits.shape}: pass (keys, rules, candidates) and (keys,).")
    if counts.dtype.kind not in "iu" or hits.dtype.kind not in "iu":
        raise TypeError(f"counts are {counts.dtype} and hits {hits.dtype}: pass integer arrays.")
    most = counts.max(axis=2, initial=0).sum(axis=1)
    if (counts < 0).any() or (hits < 0).any() or (hits > most).any():
        raise ValueError("counts and hits must not be negative, and no key can have more hits than its best targets.")
    pieces = [
        _relabel_chunk(counts[start : start + _RELABEL_CHUNK], hits[start : start + _RELABEL_CHUNK])
        for start in range(0, len(counts), _RELABEL_CHUNK)
    ]
    return np.concatenate(pieces) if pieces else np.zeros(0)


def log2_hoeffding_tail(signed_sum: float, squares_sum: float) -> float:
    """
    Hoeffding bound for a Rademacher sum `T = sum b_i z_i` given `z`: log2 of `exp(-T^2 / (2 sum z_i^2))`.

    Args:
        signed_sum (`float`): T, the sum of the values with the key's signs applied.
        squares_sum (`float`): The sum of squares of the same values.

    Returns:
        `float`: Upper bound of log2 p; 0.0 when `T <= 0`.
    """
    if not (math.isfinite(signed_sum) and math.isfinite(squares_sum) and squares_sum >= 0):
        raise ValueError(f"signed_sum={signed_sum}, squares_sum={squares_sum}: pass finite numbers, squares_sum >= 0.")
    if signed_sum <= 0:
        return 0.0
    if squares_sum == 0:
        raise ValueError(f"signed_sum={signed_sum} with squares_sum=0.0: both must come from the same values.")
    return -(signed_sum**2) / (2 * squares_sum * LN2)


def log2_upper_tail(matches: int, trials: int, p: float, q: float) -> float:
    """log2 P(Bin(trials, p) >= matches) with q = 1 - p; sums the side of the law that is the small one."""
    if matches <= 0:
        return 0.0
    if matches > trials * p:
        return min(0.0, _log2_tail_sum(matches, trials, p, q))
    return math.log1p(-(2.0 ** _log2_tail_sum(trials - matches + 1, trials, q, p))) / LN2


def _log2_tail_sum(matches: int, trials: int, p: float, q: float) -> float:
    """First term in log space times a sum of ratios: beyond the mean they fall, and all are positive."""
    k = np.arange(matches, trials)
    ratios = (trials - k) / (k + 1) * (p / q)
    log2_first = log2_comb(trials, matches) + matches * math.log2(p) + (trials - matches) * math.log2(q)
    return log2_first + math.log2(1 + float(np.cumprod(ratios).sum()))


def log2_comb(n: int, k: int) -> float:
    if n <= _EXACT_TRIALS:
        return math.log2(math.comb(n, k))
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / LN2


def _relabel_chunk(counts: np.ndarray, hits: np.ndarray) -> np.ndarray:
    keys, rules, candidates = counts.shape
    law = np.ones((keys, 1))
    for rule in range(rules):
        most = int(counts[:, rule].max(initial=0))
        wider = np.zeros((keys, law.shape[1] + most))
        for matches in range(most + 1):
            share = (counts[:, rule] == matches).mean(axis=1, keepdims=True)
            wider[:, matches : matches + law.shape[1]] += share * law
        law = wider
    tails = np.cumsum(law[:, ::-1], axis=1)[:, ::-1]
    return np.minimum(tails[np.arange(keys), hits], 1.0)
