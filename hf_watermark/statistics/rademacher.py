"""Sums of values with key-drawn signs (Rademacher sums): proven tail bounds and e-values, given the values."""

import math

import numpy as np

from .tails import LN2


# Newton converges in a few steps; only where all signs agree does the best bet run away, one step after another.
_MOST_STEPS = 100
# Bets in units of one over the root mean square of the values: from many weak units to few clear ones.
_BETS = np.geomspace(0.02, 5.0, 24)


def log2_rademacher_tail(signed_sum: float, values: np.ndarray) -> float:
    """
    Chernoff bound for a Rademacher sum `T = sum b_i z_i` given `z`: log2 of the least `exp(-lambda T) prod cosh(lambda z_i)`.

    Never above Hoeffding's bound ([`log2_hoeffding_tail`] replaces `cosh(x)` by the larger `exp(x^2 / 2)`), and exactly `2**-n`
    where all of n signs agree, at which Hoeffding gives `2**(-0.72 n)`. Every `lambda` gives a valid bound, so the
    precision of the search costs power only.

    Args:
        signed_sum (`float`): T, the sum of the values with the key's signs applied.
        values (`np.ndarray`): The values, in any shape; zeros are units that say nothing.

    Returns:
        `float`: Upper bound of log2 P(sum >= T) over uniform signs; 0.0 when `T <= 0`.
    """
    sizes = _sizes(signed_sum, values)
    if signed_sum <= 0:
        return 0.0
    most = float(sizes.sum())
    if signed_sum > most * (1 + 1e-9):
        raise ValueError(
            f"signed_sum={signed_sum} is more than all values together ({most}): they do not belong together."
        )
    scale = math.sqrt(float(np.mean(sizes**2)))
    sizes, target = sizes / scale, min(signed_sum, most) / scale
    bet, best = 0.0, 0.0
    for _ in range(_MOST_STEPS):
        # The slope's root is approached from the left: sum z tanh(bet z) is concave in the bet.
        tanh = np.tanh(bet * sizes)
        curvature = float(np.sum(sizes**2 * (1 - tanh**2)))
        if curvature <= 1e-12 * len(sizes):
            break
        bet += (target - float(np.sum(sizes * tanh))) / curvature
        bound = _log_cosh_sum(bet, sizes) - bet * target
        if bound > best - 1e-9 * (1 + abs(best)):
            best = min(best, bound)
            break
        best = bound
    return min(0.0, best / LN2)


def log2_e_rademacher(signed_sum: float, values: np.ndarray) -> float:
    """
    log2 e-value of a Rademacher sum given its values: the mean of `exp(lambda T) / prod cosh(lambda z_i)` over a fixed grid of 24
    bets, which has expectation exactly 1 over uniform signs.

    Args:
        signed_sum (`float`): T, the sum of the values with the key's signs applied.
        values (`np.ndarray`): The values, in any shape.

    Returns:
        `float`: log2 of the e-value; 0.0 where all values are zero.
    """
    sizes = _sizes(signed_sum, values)
    if not len(sizes):
        return 0.0
    scale = math.sqrt(float(np.mean(sizes**2)))
    sizes, target = sizes / scale, signed_sum / scale
    log_e = np.array([bet * target - _log_cosh_sum(bet, sizes) for bet in _BETS])
    return float(np.logaddexp.reduce(log_e) - math.log(len(_BETS))) / LN2


class CheckpointTest:
    """
    Sequential test of signs that are asked many times: e-values of all answers so far, taken at a number of checkpoints that is
    fixed in advance, averaged over all of them.

    A unit's sign is drawn once and shows in every later answer, so the product of single bets is no martingale. The average of e-values
    over fixed checkpoints is an e-value whatever their dependence, and it only grows; so the first checkpoint at which it
    is large enough may end the test (Markov). The price is log2(checkpoints) bits.

    Args:
        checkpoints (`int`): Number of checkpoints.
    """

    def __init__(self, checkpoints: int):
        if checkpoints < 1:
            raise ValueError(f"checkpoints={checkpoints}: at least one is needed.")
        self.checkpoints, self.taken, self.log2_e = checkpoints, 0, -math.inf

    def update(self, signed_sum: float, values: np.ndarray) -> float:
        """Adds the e-value of all answers up to this checkpoint; returns log2 of the running e-value."""
        if self.taken == self.checkpoints:
            raise ValueError(f"all {self.checkpoints} checkpoints are taken: their number was fixed in advance.")
        self.taken += 1
        share = log2_e_rademacher(signed_sum, values) - math.log2(self.checkpoints)
        self.log2_e = float(np.logaddexp2(self.log2_e, share))
        return self.log2_e


def _sizes(signed_sum: float, values: np.ndarray) -> np.ndarray:
    sizes = np.abs(np.asarray(values, dtype=np.float64)).ravel()
    if not (math.isfinite(signed_sum) and np.isfinite(sizes).all()):
        raise ValueError(f"signed_sum={signed_sum} or a value is not finite: pass finite numbers.")
    sizes = sizes[sizes > 0]
    if not len(sizes) and signed_sum > 0:
        raise ValueError(f"signed_sum={signed_sum} with no value: both must come from the same values.")
    return sizes


def _log_cosh_sum(bet: float, sizes: np.ndarray) -> float:
    scaled = abs(bet) * sizes
    return float(np.sum(scaled + np.log1p(np.exp(-2 * scaled)))) - len(sizes) * LN2
