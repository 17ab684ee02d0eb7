"""Exact confidence bounds of probabilities and quantiles."""

import math
from dataclasses import dataclass
from functools import lru_cache
from operator import index

from scipy import stats

from .checks import check_probability
from .evalues import log2_e_beta_mixture


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
    check_probability("confidence", confidence)
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
    check_probability("quantile", quantile)
    check_probability("alpha", alpha)
    if n < 1:
        raise ValueError(f"n={n}: pass at least one draw.")
    # ppf gives the smallest x with cdf(x) >= alpha; wanted is the largest k with cdf(k - 1) <= alpha.
    smallest = int(stats.binom.ppf(alpha, n, quantile))
    k = smallest + 1 if stats.binom.cdf(smallest, n, quantile) <= alpha else smallest
    return k or None


def order_statistic_above(n: int, quantile: float, alpha: float) -> int | None:
    """
    Which of `n` sorted draws is an upper confidence bound of a quantile: the smallest k with P(Bin(n, quantile) >= k) <= alpha, so
    that the k-th smallest draw lies at or above the `quantile`-quantile with probability at least `1 - alpha`.

    Returns:
        `int` or `None`: k, counted from 1; `None` where even the largest draw gives no such bound.
    """
    n = index(n)
    check_probability("quantile", quantile)
    check_probability("alpha", alpha)
    if n < 1:
        raise ValueError(f"n={n}: pass at least one draw.")
    # isf gives the smallest x with P(Bin > x) <= alpha, and k = x + 1; the neighbours guard against its rounding.
    guess = int(stats.binom.isf(alpha, n, quantile)) + 1
    for k in range(max(1, guess - 1), min(n, guess + 1) + 1):
        if stats.binom.sf(k - 1, n, quantile) <= alpha:
            return k
    return None


def smallest_certifiable_quantile(n: int, alpha: float) -> float:
    """The smallest quantile of which `n` draws give a lower confidence bound (their minimum): `1 - alpha**(1/n)`."""
    check_probability("alpha", alpha)
    if index(n) < 1:
        raise ValueError(f"n={n}: pass at least one draw.")
    return -math.expm1(math.log(alpha) / index(n))


def draws_to_certify(quantile: float, alpha: float) -> int:
    """How many draws give any lower confidence bound of this quantile; the inverse of [`smallest_certifiable_quantile`]."""
    check_probability("quantile", quantile)
    check_probability("alpha", alpha)
    return math.ceil(math.log(alpha) / math.log1p(-quantile))


@dataclass(frozen=True)
class QuantileTest:
    """
    Sequential test of "the `quantile`-quantile of a law is at least t", fed with whether each draw lies below t.

    The statement holds exactly when a draw lies below t with probability at most `quantile`. It is accepted early by an
    anytime-valid e-process that spends `early` of `alpha`, at the latest after `n` draws by the order statistic that spends
    the rest; so a wrong acceptance has probability at most `alpha`. It is given up early by the mirrored e-process, which
    costs power only. Make one with [`quantile_test`].

    Args:
        accept (`tuple[int, ...]`):
            After i + 1 draws the statement is accepted when at most `accept[i]` of them lie below t (-1: never yet).
        give_up (`tuple[int, ...]`):
            After i + 1 draws it is given up when at least `give_up[i]` of them lie below t.
    """

    n: int
    accept: tuple[int, ...]
    give_up: tuple[int, ...]

    def decide(self, draws: int, below: int) -> bool | None:
        """`True`, `False`, or `None` where more draws are needed."""
        if below <= self.accept[draws - 1]:
            return True
        if below >= self.give_up[draws - 1] or draws >= self.n:
            return False
        return None


@lru_cache(maxsize=64)
def quantile_test(n: int, quantile: float, alpha: float, early: float = 0.2) -> QuantileTest:
    """
    Args:
        n (`int`): Most draws.
        quantile (`float`): Level of the quantile.
        alpha (`float`): Probability of a wrong acceptance.
        early (`float`, *optional*, defaults to 0.2): Share of `alpha` for accepting before the last draw.
    """
    check_probability("quantile", quantile)
    check_probability("alpha", alpha)
    check_probability("early", early)
    wanted, surrender = -math.log2(early * alpha), -math.log2(alpha)
    accept, give_up = [], []
    most, least = -1, 1  # both only grow with the number of draws
    for draws in range(1, index(n) + 1):
        while most < draws - 1 and log2_e_beta_mixture(draws - most - 1, draws, 1 - quantile) >= wanted:
            most += 1
        while least <= draws and log2_e_beta_mixture(least, draws, quantile) < surrender:
            least += 1
        accept.append(most)
        give_up.append(least)
    last = order_statistic_index(n, quantile, (1 - early) * alpha)
    accept[-1] = max(most, -1 if last is None else last - 1)
    return QuantileTest(n, tuple(accept), tuple(give_up))
