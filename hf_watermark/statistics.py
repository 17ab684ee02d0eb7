"""Exact tests, confidence bounds and e-values.

Every p-value is a base-2 logarithm of a tail of a *known* law, so that nothing underflows, and every count is an
integer, so that no rounding decides a match. Nothing here is estimated from data.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from operator import index

import numpy as np
from scipy import stats


LOG2_P_FLOOR = -256.0
"""No p-value below this is ever quoted: no hash, clock or implementation deserves more trust (see [`quotable`])."""

_LN2 = math.log(2)
# Above this, the exact binomial coefficient costs more time than its last digits are worth (0.1 s at 100,000).
_EXACT_TRIALS = 10_000
_RELABEL_CHUNK = 256
_CONSTANT_BETS = 64


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
    _check_probability("p", p)
    if trials < 0 or matches > trials:
        raise ValueError(f"matches={matches} of trials={trials}: pass 0 <= trials and matches <= trials.")
    return _log2_upper_tail(matches, trials, p, 1 - p)


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
    return -(signed_sum**2) / (2 * squares_sum * _LN2)


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """
    Exact two-sided confidence interval of one probability (Clopper and Pearson, 1934).

    Args:
        successes (`int`): Observed successes.
        trials (`int`): Number of independent trials, at least 1.
        confidence (`float`, *optional*, defaults to 0.95): Coverage, strictly between 0 and 1.

    Returns:
        `tuple[float, float]`: Lower and upper end.
    """
    successes, trials = index(successes), index(trials)
    _check_probability("confidence", confidence)
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"successes={successes} of trials={trials}: pass 0 <= successes <= trials, trials >= 1.")
    side = (1 - confidence) / 2
    low = stats.beta.ppf(side, successes, trials - successes + 1) if successes else 0.0
    high = stats.beta.isf(side, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def order_statistic_index(n: int, quantile: float, alpha: float) -> int | None:
    """
    Which of `n` sorted draws is a lower confidence bound of a quantile.

    The k-th smallest draw lies at or below the `quantile`-quantile with probability at least `1 - alpha` exactly when
    P(Bin(n, quantile) >= k) >= 1 - alpha; the largest such k gives the best bound.

    Args:
        n (`int`): Number of independent draws.
        quantile (`float`): Level of the quantile, strictly between 0 and 1.
        alpha (`float`): Admissible failure probability, strictly between 0 and 1.

    Returns:
        `int` or `None`: k, counted from 1; `None` where `n` draws certify nothing.
    """
    n = index(n)
    _check_probability("quantile", quantile)
    _check_probability("alpha", alpha)
    if n < 1:
        raise ValueError(f"n={n}: pass at least one draw.")
    # ppf gives the smallest x with cdf(x) >= alpha; wanted is the largest k with cdf(k - 1) <= alpha.
    smallest = int(stats.binom.ppf(alpha, n, quantile))
    k = smallest + 1 if stats.binom.cdf(smallest, n, quantile) <= alpha else smallest
    return k or None


def log2_e_beta_mixture(matches: int, trials: int, p0: float) -> float:
    """
    log2 e-value of a hit sequence whose null hit rate is at most `p0`.

    Likelihood ratio of the uniform mixture over all rates above `p0` against `p0`; valid at any stopping time, also
    when later trials depend on earlier answers. Written with the identity P(Beta(s+1, n-s+1) > p0) =
    P(Bin(n+1, p0) <= s), which keeps every term a logarithm.

    Args:
        matches (`int`): Hits so far.
        trials (`int`): Trials so far.
        p0 (`float`): Largest hit rate under the null, strictly between 0 and 1.

    Returns:
        `float`: log2 of the e-value; 0.0 before the first trial.
    """
    matches, trials = index(matches), index(trials)
    _check_probability("p0", p0)
    if not 0 <= matches <= trials:
        raise ValueError(f"matches={matches} of trials={trials}: pass 0 <= matches <= trials.")
    q0 = 1 - p0
    log2_beta = -math.log2(trials + 1) - _log2_comb(trials, matches)
    log2_above = _log2_upper_tail(trials + 1 - matches, trials + 1, q0, p0)
    log2_null = matches * math.log2(p0) + (trials - matches) * math.log2(q0)
    return log2_beta + log2_above - math.log2(q0) - log2_null


class BetaMixtureProcess:
    """
    Sequential form of [`log2_e_beta_mixture`]: feed hits one by one and stop whenever you like.

    Args:
        p0 (`float`): Largest hit rate under the null, strictly between 0 and 1.

    Example:

    ```python
    >>> process = BetaMixtureProcess(p0=0.1)
    >>> for hit in [True, True, False, True]:
    ...     process.update(hit)
    >>> process.matches, process.trials, process.log2_e > 4
    (3, 4, True)
    ```
    """

    def __init__(self, p0: float):
        _check_probability("p0", p0)
        self.p0 = p0
        self.matches = 0
        self.trials = 0

    def update(self, hit: bool) -> None:
        """Counts one more trial."""
        if hit not in (0, 1):
            raise ValueError(f"hit={hit!r}: pass True or False, one trial at a time.")
        self.matches += int(hit)
        self.trials += 1

    @property
    def log2_e(self) -> float:
        """log2 of the e-value of everything seen so far."""
        return log2_e_beta_mixture(self.matches, self.trials, self.p0)


def log2_e_bounded_mean(values: Sequence[float], p0: float, bets: Sequence[float] | None = None) -> float:
    """
    log2 e-value of values in [0, 1] whose null mean, given the past, is at most `p0`: the product of
    `1 + bet_r * (x_r - p0)`.

    Without `bets`, the e-values of 64 constant bets spread evenly over [0, 1 / (2 p0)] are averaged. That is the same
    as the predictable bet "average of the constant bets, weighted by what each has earned so far" (Cover's universal
    portfolio, 1991), costs at most 6 bits against the best of them, and does not depend on the order of the values.

    Args:
        values (`Sequence[float]`): One value per independent unit (rule, image), in the order fixed before looking.
        p0 (`float`): Largest mean under the null, strictly between 0 and 1.
        bets (`Sequence[float]`, *optional*): One bet in [0, 1 / (2 p0)] per value. The e-value is only valid if each
            was chosen without looking at its own or later values.

    Returns:
        `float`: log2 of the e-value.
    """
    _check_probability("p0", p0)
    if bets is not None and len(bets) != len(values):
        raise ValueError(f"Got {len(bets)} bets for {len(values)} values: pass one bet per value.")
    largest = 1 / (2 * p0)
    observed = np.asarray(values, dtype=np.float64)
    _check_range("values", observed, 1.0)
    if bets is not None:
        own = np.asarray(bets, dtype=np.float64)
        _check_range("bets", own, largest)
        return float(np.log1p(own * (observed - p0)).sum()) / _LN2
    grid = largest * (np.arange(_CONSTANT_BETS) + 0.5) / _CONSTANT_BETS
    log_e = np.log1p(grid[:, None] * (observed - p0)).sum(axis=1)
    return float(np.logaddexp.reduce(log_e) - math.log(_CONSTANT_BETS)) / _LN2


def log2_e_from_log2_p(log2_p: float, kappa: float = 0.1) -> float:
    """
    Calibrates a p-value, fixed before any look, into an e-value: `E = kappa * p**(kappa - 1)`.

    Args:
        log2_p (`float`): log2 of the p-value, at most 0.
        kappa (`float`, *optional*, defaults to 0.1): Strictly between 0 and 1; smaller favours small p-values.

    Returns:
        `float`: log2 of the e-value.
    """
    _check_log2_p(log2_p)
    _check_probability("kappa", kappa)
    return math.log2(kappa) + (kappa - 1) * log2_p


def log2_p_from_log2_e(log2_e: float) -> float:
    """log2 of the p-value `min(1, 1/E)` that an e-value implies at any stopping time (Markov, Ville)."""
    if math.isnan(log2_e):
        raise ValueError("log2_e is not a number.")
    return min(0.0, -log2_e)


def charge_looks(log2_p: float, looks: int) -> float:
    """
    Bonferroni in bits: adds `log2(looks)` and caps at 0.

    Args:
        log2_p (`float`): log2 of the smallest p-value over all looks.
        looks (`int`): How many alignments, sub-keys or snapshots were tried, at least 1.

    Returns:
        `float`: log2 of a p-value that is valid after that many looks.
    """
    _check_log2_p(log2_p)
    if index(looks) < 1:
        raise ValueError(f"looks={looks}: the look that gave this p-value counts as 1.")
    return min(0.0, log2_p + math.log2(looks))


def quotable(log2_p: float) -> float:
    """Clips a log2 p-value to the smallest one that may be quoted, [`LOG2_P_FLOOR`]."""
    _check_log2_p(log2_p)
    return max(log2_p, LOG2_P_FLOOR)


def _log2_upper_tail(matches: int, trials: int, p: float, q: float) -> float:
    """log2 P(Bin(trials, p) >= matches) with q = 1 - p; sums the side of the law that is the small one."""
    if matches <= 0:
        return 0.0
    if matches > trials * p:
        return min(0.0, _log2_tail_sum(matches, trials, p, q))
    return math.log1p(-(2.0 ** _log2_tail_sum(trials - matches + 1, trials, q, p))) / _LN2


def _log2_tail_sum(matches: int, trials: int, p: float, q: float) -> float:
    """First term in log space times a sum of ratios: beyond the mean they fall, and all are positive."""
    k = np.arange(matches, trials)
    ratios = (trials - k) / (k + 1) * (p / q)
    log2_first = _log2_comb(trials, matches) + matches * math.log2(p) + (trials - matches) * math.log2(q)
    return log2_first + math.log2(1 + float(np.cumprod(ratios).sum()))


def _log2_comb(n: int, k: int) -> float:
    if n <= _EXACT_TRIALS:
        return math.log2(math.comb(n, k))
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / _LN2


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


def _check_probability(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}={value}: pass a number strictly between 0 and 1.")


def _check_range(name: str, values: np.ndarray, largest: float) -> None:
    outside = np.flatnonzero(~((values >= 0) & (values <= largest)))
    if outside.size:
        raise ValueError(f"{name}[{outside[0]}]={values[outside[0]]}: pass {name} in [0, {largest}].")


def _check_log2_p(log2_p: float) -> None:
    if not log2_p <= 0:
        raise ValueError(f"log2_p={log2_p}: the base-2 logarithm of a p-value is at most 0.")
