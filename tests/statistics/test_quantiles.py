"""Bounds of quantiles: the published index table, brute force with exact rationals, and the sequential test against known answers."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.stats import norm

from hf_watermark.statistics import (
    QuantileTest,
    draws_to_certify,
    log2_binomial_tail,
    order_statistic_above,
    order_statistic_index,
    quantile_test,
    smallest_certifiable_quantile,
)


# papers.md section 1.2: radius in units of sigma, then the index for 100, 1,000 and 10,000 draws at confidence 0.99, and for 1,000 at 0.999.
COLUMNS = ((100, 0.01), (1000, 0.01), (10_000, 0.01), (1000, 0.001))
TABLE = {
    0.2: (31, 385, 4093, 373),
    0.4: (24, 310, 3335, 299),
    0.6: (17, 242, 2639, 231),
    0.8: (12, 182, 2024, 173),
    1.0: (8, 132, 1502, 124),
    1.2: (5, 92, 1077, 85),
    1.4: (2, 61, 745, 55),
    1.6: (1, 39, 496, 34),
    1.8: (None, 23, 317, 19),
    2.0: (None, 13, 194, 10),
    2.4: (None, 2, 62, 1),
}


def below(radius: float) -> float:
    """The quantile that a certificate of this radius speaks of."""
    return float(norm.cdf(-radius))


def exact_tail(k: int, n: int, p: Fraction) -> Fraction:
    """P(Bin(n, p) >= k) as a rational number."""
    return sum((math.comb(n, hits) * p**hits * (1 - p) ** (n - hits) for hits in range(k, n + 1)), Fraction(0))


# --- Order statistics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", TABLE)
def test_index_table(radius: float):
    assert tuple(order_statistic_index(n, below(radius), alpha) for n, alpha in COLUMNS) == TABLE[radius]


@pytest.mark.parametrize(("n", "largest"), [(100, 1.695), (1000, 2.605), (10_000, 3.314)])
def test_largest_certifiable_radius(n: int, largest: float):
    assert -norm.ppf(smallest_certifiable_quantile(n, 0.01)) == pytest.approx(largest, abs=5e-4)
    assert order_statistic_index(n, below(largest - 0.001), 0.01) == 1
    assert order_statistic_index(n, below(largest + 0.001), 0.01) is None


@pytest.mark.parametrize("alpha", [1 / 2, 1 / 20, 1 / 200, 1 / 1024])
@pytest.mark.parametrize("quantile", [1 / 2, 1 / 5, 3 / 10, 19 / 20])
def test_indices_equal_brute_force(quantile: float, alpha: float):
    # The rationals are those that the floats really are, so that ties (such as 1/1024 = 2**-10) are ties.
    for n in (1, 2, 3, 10, 17, 30):
        tails = [exact_tail(k, n, Fraction(quantile)) for k in range(n + 1)]
        under = [k for k in range(1, n + 1) if tails[k] >= 1 - Fraction(alpha)]
        above = [k for k in range(1, n + 1) if tails[k] <= Fraction(alpha)]
        assert order_statistic_index(n, quantile, alpha) == max(under, default=None)
        assert order_statistic_above(n, quantile, alpha) == min(above, default=None)


@pytest.mark.parametrize(("quantile", "alpha"), [(0.5, 0.005), (0.5, 1e-9), (0.1, 0.01), (0.001, 0.05)])
def test_the_upper_index_is_the_mirrored_lower_one(quantile: float, alpha: float):
    for n in (20, 30, 100, 1000, 10_000):
        mirrored = order_statistic_index(n, 1 - quantile, alpha)
        assert order_statistic_above(n, quantile, alpha) == (None if mirrored is None else n + 1 - mirrored)


@pytest.mark.parametrize("alpha", [0.01, 0.001, 0.005 / 11, 1e-9])
def test_draws_and_quantiles_are_inverse(alpha: float):
    for n in (15, 100, 777, 1000, 54_321):
        quantile = smallest_certifiable_quantile(n, alpha)
        assert draws_to_certify(quantile * (1 + 1e-9), alpha) == n
        assert draws_to_certify(quantile * (1 - 1e-6), alpha) == n + 1
    for radius in (0.1, 1.0, 2.0, 3.5):
        least = draws_to_certify(below(radius), alpha)
        assert smallest_certifiable_quantile(least, alpha) <= below(radius)
        assert order_statistic_index(least, below(radius), alpha) == 1
        assert order_statistic_index(least - 1, below(radius), alpha) is None


def test_bounds_of_a_law_with_atoms_hold_as_often_as_promised():
    # Match counts are integers, so many draws are equal; the true quantile is known.
    law, generator, n, alpha, repeats = stats.binom(40, 0.8), np.random.default_rng(0), 200, 0.05, 10_000
    draws = np.sort(law.rvs((repeats, n), random_state=generator), axis=1)
    for quantile in (0.3, below(1.0), 0.5):
        lower = draws[:, order_statistic_index(n, quantile, alpha) - 1]
        upper = draws[:, order_statistic_above(n, quantile, alpha) - 1]
        smallest, largest = law.ppf(quantile), law.ppf(np.nextafter(quantile, 1))
        for failures in ((lower > smallest).sum(), (upper < largest).sum()):
            assert log2_binomial_tail(int(failures), repeats, alpha) > -20
        assert lower.mean() > smallest - 1.5  # and are not loose


@pytest.mark.parametrize("function", [order_statistic_index, order_statistic_above])
def test_order_statistic_refusals(function):
    with pytest.raises(ValueError, match="n=0: pass at least one draw"):
        function(0, 0.5, 0.1)
    for quantile, alpha in ((0, 0.1), (1, 0.1), (0.5, 0), (0.5, 1), (math.nan, 0.1), (0.5, math.nan)):
        with pytest.raises(ValueError, match=r"(quantile|alpha)=.*: pass a number strictly between 0 and 1"):
            function(10, quantile, alpha)
    with pytest.raises(TypeError):
        function(10.0, 0.5, 0.1)


@pytest.mark.parametrize("n", [0, -3])
def test_no_draws_certify_no_quantile(n: int):
    with pytest.raises(ValueError, match=f"n={n}: pass at least one draw"):
        smallest_certifiable_quantile(n, 0.01)


# --- Sequential test --------------------------------------------------------------------------------------------------

N, MODELS = 1000, 10_000
SETTINGS = [(below(0.5), 0.05), (below(1.0), 0.01), (below(1.3), 0.05), (below(2.0), 0.01)]


def decide_all(test: QuantileTest, rate: float, models: int = MODELS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Decision and draws used, `[models]`, for models whose draws lie below t with this rate."""
    generator = np.random.default_rng([seed, round(rate * 1e9)])
    accepted, used = np.zeros(models, dtype=bool), np.full(models, test.n)
    for start in range(0, models, 2000):
        rows = slice(start, min(start + 2000, models))
        counts = (generator.random((rows.stop - start, test.n), dtype=np.float32) < rate).cumsum(
            axis=1, dtype=np.int16
        )
        accept, give_up = counts <= np.array(test.accept), counts >= np.array(test.give_up)
        decided = accept | give_up
        decided[:, -1] = True
        first = decided.argmax(axis=1)
        used[rows], accepted[rows] = first + 1, accept[np.arange(len(first)), first]
    return accepted, used


@pytest.mark.parametrize(("quantile", "alpha"), SETTINGS)
def test_wrong_acceptances_are_as_rare_as_promised(quantile: float, alpha: float):
    test = quantile_test(N, quantile, alpha)
    for factor in (1.0001, 1.1, 1.3):
        accepted, _ = decide_all(test, quantile * factor)
        assert log2_binomial_tail(int(accepted.sum()), MODELS, alpha) > -20, factor
    # The budget is used, not wasted: at the border nearly alpha is spent.
    assert decide_all(test, quantile * 1.0001)[0].mean() > alpha / 3


@pytest.mark.parametrize(("quantile", "alpha"), SETTINGS)
def test_early_acceptances_spend_their_share_only(quantile: float, alpha: float):
    test = quantile_test(N, quantile, alpha)
    accepted, used = decide_all(test, quantile * 1.0001, seed=1)
    assert log2_binomial_tail(int((accepted & (used < N)).sum()), MODELS, 0.2 * alpha) > -20


@pytest.mark.parametrize(("quantile", "alpha"), SETTINGS)
def test_wrong_early_refusals_are_as_rare_as_promised(quantile: float, alpha: float):
    accepted, used = decide_all(quantile_test(N, quantile, alpha), quantile, seed=2)
    assert log2_binomial_tail(int((~accepted & (used < N)).sum()), MODELS, alpha) > -20


@pytest.mark.parametrize(("quantile", "alpha"), SETTINGS)
def test_clear_models_are_accepted_early(quantile: float, alpha: float):
    accepted, used = decide_all(quantile_test(N, quantile, alpha), quantile / 4)
    if quantile * N > 100:
        assert accepted.all() and np.median(used) < N / 3
    hopeless, used = decide_all(quantile_test(N, quantile, alpha), min(1.0, 3 * quantile + 0.1))
    assert not hopeless.any() and np.median(used) < N / 3


@pytest.mark.parametrize("radii", [1, 11])
def test_a_perfect_model_is_accepted_three_times_faster(radii: int):
    accepted, used = decide_all(quantile_test(N, below(1.3), 0.005 / radii), 0.0, models=1)
    assert accepted.all() and np.median(used) * 3 <= N


def test_sequential_answers_nearly_never_lose_against_the_full_answer():
    test, full = quantile_test(N, below(1.0), 0.01), order_statistic_index(N, below(1.0), 0.01)
    accepted, _ = decide_all(test, 0.125)
    generous = stats.binom.cdf(full - 1, N, 0.125)
    assert accepted.mean() > generous - 0.1


@pytest.mark.parametrize(("quantile", "alpha"), SETTINGS)
def test_boundaries_are_those_of_the_e_process(quantile: float, alpha: float):
    def log2_e(hits: int, draws: int, p0: float) -> float:
        """Uniform mixture over the rates above p0, by numerical integration."""
        ratio = lambda p: math.exp(hits * math.log(p / p0) + (draws - hits) * (math.log1p(-p) - math.log1p(-p0)))  # noqa: E731
        return math.log2(integrate.quad(ratio, p0, 1 - 1e-15, limit=200)[0] / (1 - p0))

    test = quantile_test(N, quantile, alpha)
    for draws in (1, 2, 30, 100, 250):
        most, least = test.accept[draws - 1], test.give_up[draws - 1]
        wanted, surrender = -math.log2(0.2 * alpha), -math.log2(alpha)
        if most >= 0:
            assert log2_e(draws - most, draws, 1 - quantile) > wanted - 1e-6
        if most + 1 <= draws:
            assert log2_e(draws - most - 1, draws, 1 - quantile) < wanted + 1e-6
        if least <= draws:
            assert log2_e(least, draws, quantile) > surrender - 1e-6
        assert log2_e(least - 1, draws, quantile) < surrender + 1e-6


def test_decisions_follow_the_boundaries():
    test = QuantileTest(3, accept=(-1, 0, 1), give_up=(2, 2, 3))
    assert [test.decide(1, below) for below in (0, 1)] == [None, None]
    assert [test.decide(2, below) for below in (0, 1, 2)] == [True, None, False]
    assert [test.decide(3, below) for below in (1, 2, 3)] == [True, False, False]


def test_the_last_draw_always_decides():
    for n, quantile, alpha in ((1, 0.5, 0.6), (20, 0.3, 0.01), (200, 0.05, 0.01), (10, 0.01, 0.01)):
        test = quantile_test(n, quantile, alpha)
        assert len(test.accept) == len(test.give_up) == n
        assert all(test.decide(n, count) is not None for count in range(n + 1))
        last = order_statistic_index(n, quantile, 0.8 * alpha)
        assert test.accept[-1] >= (-1 if last is None else last - 1)


@pytest.mark.parametrize("field", ["quantile", "alpha", "early"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, math.nan])
def test_sequential_refusals(field: str, value: float):
    with pytest.raises(ValueError, match=f"{field}={value}: pass a number strictly between 0 and 1"):
        quantile_test(**{"n": 10, "quantile": 0.2, "alpha": 0.05} | {field: value})
