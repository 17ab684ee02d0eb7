"""e-values and what may be quoted: evidence that stays valid at any stopping time."""

import math
from collections.abc import Sequence
from operator import index

import numpy as np

from .checks import check_log2_p, check_probability, check_range
from .tails import LN2, log2_comb, log2_upper_tail


LOG2_P_FLOOR = -256.0
"""No p-value below this is ever quoted: no hash, clock or implementation deserves more trust (see [`quotable`])."""

_CONSTANT_BETS = 64
_RELABEL_BETS = np.geomspace(0.05, 5.0, 12)


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
    check_probability("p0", p0)
    if not 0 <= matches <= trials:
        raise ValueError(f"matches={matches} of trials={trials}: pass 0 <= matches <= trials.")
    q0 = 1 - p0
    log2_beta = -math.log2(trials + 1) - log2_comb(trials, matches)
    log2_above = log2_upper_tail(trials + 1 - matches, trials + 1, q0, p0)
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
        check_probability("p0", p0)
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
    check_probability("p0", p0)
    if bets is not None and len(bets) != len(values):
        raise ValueError(f"Got {len(bets)} bets for {len(values)} values: pass one bet per value.")
    largest = 1 / (2 * p0)
    observed = np.asarray(values, dtype=np.float64)
    check_range("values", observed, 1.0)
    if bets is not None:
        own = np.asarray(bets, dtype=np.float64)
        check_range("bets", own, largest)
        return float(np.log1p(own * (observed - p0)).sum()) / LN2
    grid = largest * (np.arange(_CONSTANT_BETS) + 0.5) / _CONSTANT_BETS
    log_e = np.log1p(grid[:, None] * (observed - p0)).sum(axis=1)
    return float(np.logaddexp.reduce(log_e) - math.log(_CONSTANT_BETS)) / LN2


def log2_e_relabel(counts: np.ndarray, hits: np.ndarray) -> float:
    """
    log2 e-value of rules whose target is drawn uniformly from their candidates: per rule `exp(bet * hits)` over its mean across all
    candidates, multiplied over rules and averaged over a fixed grid of 12 bets. Given the answers its expectation is exactly 1, and the
    product may end after any rule, also when later questions or answers depend on earlier ones.

    It uses what [`log2_e_bounded_mean`] throws away, which answers were given: a rule with all its images right, and C - 2
    candidates, earns nearly log2(C - 2) bits.

    Args:
        counts (`np.ndarray`): `[rules, candidates]`: answers that equal each target that could have been drawn.
        hits (`np.ndarray`): `[rules]`: answers that equal the drawn one.

    Returns:
        `float`: log2 of the e-value; 0.0 without rules.
    """
    counts, hits = np.asarray(counts, dtype=np.float64), np.asarray(hits, dtype=np.float64)
    if len(counts) != len(hits) or not (counts == hits[:, None]).any(axis=1).all():
        raise ValueError("every hit count must be one of its rule's counts: they do not belong together.")
    bets = _RELABEL_BETS[:, None]
    mean = np.logaddexp.reduce(bets[..., None] * counts, axis=2) - math.log(max(1, counts.shape[1]))
    log_e = (bets * hits - mean).sum(axis=1)
    return float(np.logaddexp.reduce(log_e) - math.log(len(_RELABEL_BETS))) / LN2


def log2_e_from_log2_p(log2_p: float, kappa: float = 0.1) -> float:
    """
    Calibrates a p-value, fixed before any look, into an e-value: `E = kappa * p**(kappa - 1)`.

    Args:
        log2_p (`float`): log2 of the p-value, at most 0.
        kappa (`float`, *optional*, defaults to 0.1): Strictly between 0 and 1; smaller favours small p-values.

    Returns:
        `float`: log2 of the e-value.
    """
    check_log2_p(log2_p)
    check_probability("kappa", kappa)
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
    check_log2_p(log2_p)
    if index(looks) < 1:
        raise ValueError(f"looks={looks}: the look that gave this p-value counts as 1.")
    return min(0.0, log2_p + math.log2(looks))


def quotable(log2_p: float) -> float:
    """Clips a log2 p-value to the smallest one that may be quoted, [`LOG2_P_FLOOR`]."""
    check_log2_p(log2_p)
    return max(log2_p, LOG2_P_FLOOR)
