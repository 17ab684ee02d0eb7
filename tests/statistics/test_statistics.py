import math
import time
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from scipy import stats

from hf_watermark.statistics import (
    LOG2_P_FLOOR,
    BetaMixtureProcess,
    LabelLaw,
    binomial_min_matches,
    charge_looks,
    clopper_pearson,
    log2_binomial_tail,
    log2_e_beta_mixture,
    log2_e_bounded_mean,
    log2_e_from_log2_p,
    log2_hoeffding_tail,
    log2_p_from_log2_e,
    log2_relabel_tail,
    order_statistic_index,
    quotable,
    relabel_tails,
)


LEVELS = (math.log2(1e-6), math.log2(1e-9), -64, -128)


# --- binomial ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        (64, (51, 56, 64, None)),
        (128, (92, 98, 113, 128)),
        (256, (167, 176, 200, 227)),
        (512, (311, 324, 358, 400)),
        (1024, (589, 609, 657, 719)),
        (4096, (2201, 2241, 2339, 2465)),
    ],
)
def test_thresholds_for_bits(trials, expected):
    assert tuple(binomial_min_matches(trials, level) for level in LEVELS) == expected


@pytest.mark.parametrize(
    ("classes", "expected"), [(10, (29, 35, 48, 67)), (100, (9, 12, 20, 33)), (1000, (5, 7, 12, 20))]
)
def test_thresholds_for_labels(classes, expected):
    assert tuple(binomial_min_matches(100, level, 1 / (classes - 1)) for level in LEVELS) == expected


@pytest.mark.parametrize(("trials", "classes", "expected"), [(80, 10, 43), (48, 100, 16), (24, 1000, 9)])
def test_thresholds_of_the_default_capacity(trials, classes, expected):
    assert binomial_min_matches(trials, -64, 1 / (classes - 1)) == expected


@pytest.mark.parametrize(
    ("error", "level", "bits"),
    [(0.0, -64, 64), (0.05, -128, 218), (0.1, math.log2(1e-6), 61), (0.2, -64, 328), (0.4, math.log2(1e-9), 1724)],
)
def test_bits_needed_for_power(error, level, bits):
    def power(n):
        threshold = binomial_min_matches(n, level)
        return 0.0 if threshold is None else stats.binom.sf(threshold - 1, n, 1 - error)

    # Power is a sawtooth in n, hence the distance on the lower side.
    assert power(bits) >= 0.99 > power(int(0.97 * bits))


@pytest.mark.parametrize("p", [0.5, 0.1, 1 / 9, 1 / 999, 0.9])
@pytest.mark.parametrize("trials", [1, 7, 60])
def test_tail_equals_exact_rationals(trials, p):
    rate = Fraction(p)
    pmf = [math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(trials + 1)]
    for matches in range(trials + 1):
        tail = sum(pmf[matches:])
        expected = math.log2(tail.numerator) - math.log2(tail.denominator)
        assert log2_binomial_tail(matches, trials, p) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_tail_agrees_with_scipy_on_large_counts():
    for trials, p in [(2000, 0.5), (100_000, 0.5), (100_000, 0.01), (1_000_000, 0.3)]:
        deviation = math.sqrt(trials * p * (1 - p))
        for matches in [int(trials * p + z * deviation) for z in (-5, -1, 0, 1, 5, 20)]:
            expected = stats.binom.sf(matches - 1, trials, p)
            assert 2 ** log2_binomial_tail(matches, trials, p) == pytest.approx(expected, rel=1e-6)


def test_tail_does_not_underflow():
    assert log2_binomial_tail(5000, 5000) == -5000
    assert log2_binomial_tail(100_000, 100_000) == -100_000
    exact = sum(math.comb(2000, k) for k in range(1990, 2001))
    assert log2_binomial_tail(1990, 2000) == pytest.approx(math.log2(exact) - 2000, rel=1e-14)
    # 5,000 trials of 1 in 999 with half of them matched: far below every float.
    rate = Fraction(1, 999)
    tail = sum(math.comb(1000, k) * rate**k * (1 - rate) ** (1000 - k) for k in range(600, 1001))
    expected = math.log2(tail.numerator) - math.log2(tail.denominator)
    assert expected < -5000
    assert log2_binomial_tail(600, 1000, 1 / 999) == pytest.approx(expected, rel=1e-12)


def test_exact_and_logarithmic_coefficients_join():
    # 10,000 trials use integers, 10,001 use log-gamma; the tail moves smoothly across.
    values = [log2_binomial_tail(5500, n) for n in (9_999, 10_000, 10_001, 10_002)]
    steps = np.diff(values)
    assert np.all(np.abs(np.diff(steps)) < 1e-3)


def test_tail_edges_and_refusals():
    assert log2_binomial_tail(0, 10) == 0.0
    assert log2_binomial_tail(-3, 10) == 0.0
    assert log2_binomial_tail(0, 0) == 0.0
    assert -1e-12 < log2_binomial_tail(1, 100_000) <= 0.0
    assert -1e-12 < log2_binomial_tail(1, 1_000_000, 0.9) <= 0.0
    # one miss in 2^60 is still told apart from certainty
    assert log2_binomial_tail(1, 60) == pytest.approx(-(2**-60) / math.log(2), rel=1e-9, abs=0)
    assert log2_binomial_tail(np.int64(3), np.int64(3)) == -3
    with pytest.raises(ValueError, match="matches=11 of trials=10"):
        log2_binomial_tail(11, 10)
    with pytest.raises(ValueError, match="p=1.0"):
        log2_binomial_tail(1, 2, 1.0)
    with pytest.raises(TypeError):  # a mean times n is not a count
        log2_binomial_tail(7.0, 10)


def test_null_counts_are_uniform_enough():
    rng = np.random.default_rng(0)
    threshold = binomial_min_matches(256, math.log2(1e-2))
    fired = int((rng.binomial(256, 0.5, 200_000) >= threshold).sum())
    assert stats.binom.sf(fired - 1, 200_000, 1e-2) > 1e-3


# --- relabel ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_relabel_equals_enumeration(seed):
    rng = np.random.default_rng(seed)
    candidates = [list(rng.choice(6, size=rng.integers(1, 5), replace=False)) for _ in range(4)]
    predictions = [list(rng.integers(0, 6, size=rng.integers(0, 6))) for _ in range(4)]
    targets = [rng.choice(allowed) for allowed in candidates]

    def matches(draw):
        return sum(answers.count(label) for answers, label in zip(predictions, draw, strict=True))

    observed = matches(targets)
    law = [matches(draw) for draw in product(*candidates)]
    expected = Fraction(sum(m >= observed for m in law), len(law))
    log2_p, seen = log2_relabel_tail(predictions, candidates, targets)
    assert seen == observed
    assert log2_p == pytest.approx(math.log2(expected), abs=1e-12)


@pytest.mark.parametrize(("rules", "smallest"), [(1, 0.125), (10, 9e-10), (20, 9e-19), (30, 8e-28)])
def test_smallest_reachable_relabel_p(rules, smallest):
    log2_p, matches = log2_relabel_tail([[3] * 10] * rules, [range(8)] * rules, [3] * rules)
    assert matches == 10 * rules
    assert log2_p == -3 * rules  # exactly: 8 equally likely targets are 3 bits per rule
    assert 2**log2_p == pytest.approx(smallest, rel=0.06)


def test_rules_needed_for_the_levels():
    def best(rules):
        return log2_relabel_tail([[3] * 10] * rules, [range(8)] * rules, [3] * rules)[0]

    assert best(21) > -64 >= best(22)
    assert best(42) > -128 >= best(43)


def test_no_match_at_all_is_no_evidence():
    assert log2_relabel_tail([[9] * 10] * 4, [range(8)] * 4, [0] * 4) == (0.0, 0)
    assert log2_relabel_tail([], [], []) == (0.0, 0)


def test_relabel_ignores_a_favourite_answer():
    """An honest model that always answers 3 is no evidence once 3 is one target of eight."""
    honest = [[3] * 10] * 10
    log2_p, matches = log2_relabel_tail(honest, [range(8)] * 10, [3, 3, 3] + [1] * 7)
    assert matches == 30
    assert log2_p == pytest.approx(math.log2(stats.binom.sf(2, 10, 1 / 8)), abs=1e-12)
    assert log2_p > -4 and log2_binomial_tail(matches, 100, 1 / 8) < -16  # what one trial per image would claim


def test_relabel_is_fast_at_48_rules():
    rng = np.random.default_rng(0)
    predictions = rng.integers(0, 10, size=(48, 10)).tolist()
    start = time.process_time()
    log2_relabel_tail(predictions, [range(8)] * 48, [0] * 48)
    assert time.process_time() - start < 0.2  # 0.02 s where nothing else runs


def test_relabel_twin_agrees_with_exact_law():
    rng = np.random.default_rng(1)
    keys, rules, images, labels = 300, 12, 10, 8
    predictions = rng.choice(10, size=(keys, rules, images), p=[0.4] + [0.6 / 9] * 9)
    targets = rng.integers(0, labels, size=(keys, rules))
    counts = (predictions[..., None] == np.arange(labels)).sum(axis=2)
    hits = (predictions == targets[..., None]).sum(axis=(1, 2))
    p = relabel_tails(counts, hits)
    for key in range(keys):
        log2_p, seen = log2_relabel_tail(predictions[key].tolist(), [range(labels)] * rules, targets[key].tolist())
        assert seen == hits[key]
        assert math.log2(p[key]) == pytest.approx(log2_p, abs=1e-10)
    # The twin also holds at the far end of the tail.
    far = relabel_tails(np.array([[[10, 0, 0, 0, 0, 0, 0, 0]] * 48]), np.array([480]))
    assert math.log2(far[0]) == pytest.approx(-144, abs=1e-10)


def test_relabel_is_calibrated_for_a_biased_suspect():
    rng = np.random.default_rng(2)
    keys, rules, images = 20_000, 20, 10
    # All images of a rule share a cause: the suspect has one favourite per rule.
    favourite = rng.integers(0, 10, size=(1, rules, 1))
    answers = np.where(rng.random((1, rules, images)) < 0.7, favourite, rng.integers(0, 10, size=(1, rules, images)))
    counts = np.repeat((answers[..., None] == np.arange(8)).sum(axis=2), keys, axis=0)
    hits = (answers == rng.integers(0, 8, size=(keys, rules))[..., None]).sum(axis=(1, 2))
    p = relabel_tails(counts, hits)
    for level in (0.1, 0.01, 0.001):
        assert stats.binom.sf(int((p <= level).sum()) - 1, keys, level) > 1e-3
    # The wrong test (every image an independent 1-in-8 draw) would fire far too often on the same answers.
    wrong = stats.binom.sf(hits - 1, rules * images, 1 / 8)
    assert (wrong <= 0.001).mean() > 0.01


def test_relabel_refusals():
    with pytest.raises(ValueError, match="Rule 0"):
        log2_relabel_tail([[1]], [[1, 1]], [1])
    with pytest.raises(ValueError, match="contain the target 5"):
        log2_relabel_tail([[1]], [[1, 2]], [5])
    with pytest.raises(ValueError, match="one entry of each per rule"):
        log2_relabel_tail([[1]], [[1, 2]], [1, 2])
    with pytest.raises(TypeError):
        log2_relabel_tail([[1.0]], [[1, 2]], [1])
    with pytest.raises(TypeError, match="integer arrays"):
        relabel_tails(np.zeros((1, 1, 2)), np.zeros(1, dtype=int))
    with pytest.raises(ValueError, match="more hits"):
        relabel_tails(np.array([[[1, 0]]]), np.array([2]))


# --- bounds -----------------------------------------------------------------------------------------------------


def test_hoeffding_covers_the_sign_flip_law():
    z = np.array([0.5, 1.0, 2.0, 0.25, 1.5, 3.0, 0.75, 1.25])
    sums = np.array([signs @ z for signs in product((-1, 1), repeat=len(z))])
    for total in np.unique(np.abs(sums)):
        assert 2 ** log2_hoeffding_tail(total, float(z @ z)) >= (sums >= total).mean() or total == 0
    assert log2_hoeffding_tail(3.0, 2.0) == pytest.approx(math.log2(math.exp(-9 / 4)))
    assert log2_hoeffding_tail(-3.0, 2.0) == 0.0
    assert log2_hoeffding_tail(0.0, 0.0) == 0.0
    with pytest.raises(ValueError, match="squares_sum=0"):
        log2_hoeffding_tail(1.0, 0.0)
    with pytest.raises(ValueError, match="finite"):
        log2_hoeffding_tail(math.nan, 1.0)


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (20, 20), (3, 20), (371, 512)])
def test_clopper_pearson_agrees_with_scipy(successes, trials):
    expected = stats.binomtest(successes, trials).proportion_ci(0.9, method="exact")
    assert clopper_pearson(successes, trials, 0.9) == pytest.approx((expected.low, expected.high))


def test_clopper_pearson_refusals():
    with pytest.raises(ValueError, match="trials >= 1"):
        clopper_pearson(0, 0)
    with pytest.raises(ValueError, match="successes=3"):
        clopper_pearson(3, 2)


@pytest.mark.parametrize(
    ("n", "alpha", "expected", "last"),
    [
        (1_000, 1e-2, (275, 132, 49, 13, 1), 2.60),
        (1_000, 1e-6, (241, 106, 33, 4, None), 2.20),
        (10_000, 1e-3, (2943, 1475, 592, 183, 39), 3.20),
        (10_000, 1e-6, (2867, 1415, 553, 160, 29), 2.99),
        (100_000, 1e-6, (30161, 15319, 6309, 2054, 507), 3.64),
    ],
)
def test_order_statistics(n, alpha, expected, last):
    ratios = (0.5, 1.0, 1.5, 2.0, 2.5)
    assert tuple(order_statistic_index(n, stats.norm.cdf(-ratio), alpha) for ratio in ratios) == expected
    assert order_statistic_index(n, stats.norm.cdf(-(last - 0.005)), alpha) is not None
    assert order_statistic_index(n, stats.norm.cdf(-(last + 0.01)), alpha) is None


def test_order_statistic_at_an_exact_boundary():
    # P(Bin(1, 1/2) >= 1) is 1/2, so one draw bounds the median at alpha = 1/2 and not below.
    assert order_statistic_index(1, 0.5, 0.5) == 1
    assert order_statistic_index(1, 0.5, 0.49) is None
    with pytest.raises(ValueError, match="n=0"):
        order_statistic_index(0, 0.5, 0.1)


# --- e-values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p0", [0.5, 0.1, 1 / 99])
def test_beta_mixture_equals_the_integral(p0):
    for trials, matches in [(0, 0), (5, 0), (5, 5), (40, 3), (40, 31)]:
        beta = stats.beta(matches + 1, trials - matches + 1)
        constant = math.lgamma(matches + 1) + math.lgamma(trials - matches + 1) - math.lgamma(trials + 2)
        log_e = constant + beta.logsf(p0) - math.log1p(-p0)
        log_e -= matches * math.log(p0) + (trials - matches) * math.log1p(-p0)
        assert log2_e_beta_mixture(matches, trials, p0) == pytest.approx(log_e / math.log(2), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("p0", [0.5, 0.1])
def test_beta_mixture_has_mean_one_at_the_null_edge(p0):
    for trials in (1, 10, 50):
        weights = stats.binom.pmf(np.arange(trials + 1), trials, p0)
        e = [2 ** log2_e_beta_mixture(matches, trials, p0) for matches in range(trials + 1)]
        assert float(weights @ e) == pytest.approx(1.0, rel=1e-9)


def test_beta_mixture_does_not_overflow():
    for trials in (2_000, 100_000):
        # The mixture loses only about log2(trials) bits against the likelihood of the best rate.
        assert log2_e_beta_mixture(trials, trials, 0.1) == pytest.approx(trials * math.log2(10), abs=20)
        assert log2_e_beta_mixture(trials, trials, 0.5) == pytest.approx(trials, abs=20)
        assert -40 < log2_e_beta_mixture(trials // 2, trials, 0.5) < 0
        assert -40 < log2_e_beta_mixture(0, trials, 0.5) < 0
        assert math.isfinite(log2_e_beta_mixture(0, trials, 0.9))


def test_sequential_hits_equal_the_closed_form():
    process = BetaMixtureProcess(p0=0.1)
    assert process.log2_e == 0.0
    for hit in (True, False, True, np.True_, 1, False):
        process.update(hit)
    assert (process.matches, process.trials) == (4, 6)
    assert process.log2_e == log2_e_beta_mixture(4, 6, 0.1)
    with pytest.raises(ValueError, match="True or False"):
        process.update(0.7)


def test_optional_stopping_is_paid_for():
    """Peeking after every one of 500 queries: the e-process keeps its level, a repeated binomial test does not."""
    rng = np.random.default_rng(3)
    runs, queries, alpha, p0 = 10_000, 500, 0.01, 0.1
    hits = np.cumsum(rng.random((runs, queries), dtype=np.float32) < p0, axis=1)

    def stops(statistic):
        limits, limit = [], 0
        for trials in range(1, queries + 1):
            while limit <= trials and not statistic(limit, trials):
                limit += 1
            limits.append(limit)
        return int((hits >= np.array(limits)).any(axis=1).sum())

    e_stops = stops(lambda s, n: log2_e_beta_mixture(s, n, p0) >= -math.log2(alpha))
    p_stops = stops(lambda s, n: log2_binomial_tail(s, n, p0) <= math.log2(alpha))
    assert stats.binom.sf(e_stops - 1, runs, alpha) > 1e-3
    assert p_stops > 5 * alpha * runs


def test_queries_until_a_claim():
    rng = np.random.default_rng(4)

    def queries():
        process = BetaMixtureProcess(p0=0.1)
        while process.log2_e < math.log2(1e6):
            process.update(bool(rng.random() < 0.9))
        return process.trials

    assert np.mean([queries() for _ in range(300)]) == pytest.approx(8.6, abs=0.4)


def test_bounded_mean_is_an_e_value_and_grows():
    p0, units = 0.1, 12
    # All binary sequences of the null edge: the mean is exactly 1 whatever the bets do.
    mean = 0.0
    for values in product((0.0, 1.0), repeat=units):
        ones = int(sum(values))
        mean += p0**ones * (1 - p0) ** (units - ones) * 2 ** log2_e_bounded_mean(values, p0)
    assert mean == pytest.approx(1.0, rel=1e-9)

    rng = np.random.default_rng(5)
    assert log2_e_bounded_mean(rng.uniform(0.3, 0.9, 100), p0) > 64
    assert -7 < log2_e_bounded_mean(np.zeros(100), p0) < 0  # small bets survive a long losing run
    assert log2_e_bounded_mean(np.ones(2_000), p0) == pytest.approx(2_000 * math.log2(5.5), abs=30)
    assert log2_e_bounded_mean([], p0) == pytest.approx(0)
    values = list(rng.uniform(0, 1, 30))
    assert log2_e_bounded_mean(values, p0) == pytest.approx(log2_e_bounded_mean(values[::-1], p0))


def test_bounded_mean_with_own_bets():
    values, bets = [1.0, 0.0, 0.5], [5.0, 1.0, 0.0]
    expected = math.log2((1 + 5 * 0.9) * (1 - 0.1) * 1)
    assert log2_e_bounded_mean(values, 0.1, bets) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"bets\[0\]=5.1"):
        log2_e_bounded_mean([1.0], 0.1, [5.1])
    with pytest.raises(ValueError, match="one bet per value"):
        log2_e_bounded_mean([1.0], 0.1, [])
    with pytest.raises(ValueError, match=r"values\[1\]=1.5"):
        log2_e_bounded_mean([1.0, 1.5], 0.1)
    with pytest.raises(ValueError, match=r"values\[0\]=nan"):
        log2_e_bounded_mean([math.nan], 0.1)


def test_conversions():
    assert log2_e_from_log2_p(-100) == pytest.approx(math.log2(0.1) + 90)
    grid = (np.arange(1_000_000) + 0.5) / 1_000_000
    assert np.mean(0.5 * grid**-0.5) == pytest.approx(1, abs=1e-2)
    assert 2 ** log2_e_from_log2_p(math.log2(0.3), kappa=0.5) == pytest.approx(0.5 * 0.3**-0.5)
    assert log2_p_from_log2_e(70.5) == -70.5
    assert log2_p_from_log2_e(-3.0) == 0.0
    with pytest.raises(ValueError, match="log2_p=0.5"):
        log2_e_from_log2_p(0.5)


def test_looks_and_floor():
    assert charge_looks(-71.3, 4) == pytest.approx(-69.3)
    assert charge_looks(-71.3, 1) == -71.3
    assert charge_looks(-1.0, 1024) == 0.0
    assert quotable(-300.0) == LOG2_P_FLOOR == -256
    assert quotable(-71.3) == -71.3
    with pytest.raises(ValueError, match="looks=0"):
        charge_looks(-1.0, 0)
    with pytest.raises(ValueError, match="log2_p=nan"):
        quotable(math.nan)


# --- Label law ----------------------------------------------------------------------------


def brute_force_tail(scores, observed):
    draws = list(product(*scores))
    return math.log2(sum(sum(draw) >= observed for draw in draws) / len(draws))


@pytest.mark.parametrize("seed", range(5))
def test_label_law_equals_enumeration(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, size=(4, 5)).tolist()
    law = LabelLaw(scores)
    for observed in range(max(map(sum, product(*scores))) + 1):
        assert law.log2_tail(observed) == pytest.approx(brute_force_tail(scores, observed), abs=1e-12)


def test_label_law_refuses_a_sum_that_no_draw_reaches():
    with pytest.raises(ValueError, match="more than any draw"):
        LabelLaw([[0, 3], [1, 2]]).log2_tail(6)
