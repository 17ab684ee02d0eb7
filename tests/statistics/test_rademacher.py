"""Rademacher sums: the bound against every sign pattern, the e-value's mean, and the checkpoint test."""

import math
from itertools import product

import numpy as np
import pytest

from hf_watermark.statistics import CheckpointTest, log2_e_rademacher, log2_hoeffding_tail, log2_rademacher_tail


VALUES = {
    "exponential": np.random.default_rng(0).exponential(size=9),
    "equal": np.ones(9),
    "one giant": np.array([100.0] + [1.0] * 8),
    "tiny scale": np.random.default_rng(1).normal(size=9) * 1e-9,
    "zeros among": np.array([0.0, 2.0, 0.0, 1.0, 0.5, 3.0]),
}


def all_sums(values: np.ndarray) -> np.ndarray:
    return np.array(list(product([-1, 1], repeat=len(values)))) @ values


@pytest.mark.parametrize("name", VALUES)
def test_the_bound_lies_between_the_exact_tail_and_hoeffding(name):
    values = VALUES[name]
    sums = all_sums(values)
    for total in np.unique(sums)[:: max(1, len(sums) // 200)]:
        exact = math.log2((sums >= total - 1e-9 * abs(total)).mean())
        bound = log2_rademacher_tail(float(total), values)
        assert exact <= bound + 1e-9 <= 1e-9
        if total > 0:
            assert bound <= log2_hoeffding_tail(float(total), float((values**2).sum())) + 1e-9


@pytest.mark.parametrize("count", [1, 40, 1000])
def test_agreement_of_all_signs_is_exact(count):
    assert log2_rademacher_tail(float(count), np.ones(count)) == pytest.approx(-count, rel=1e-6)
    assert log2_rademacher_tail(float(count), np.ones(count)) >= -count


@pytest.mark.parametrize("name", VALUES)
def test_the_e_value_has_mean_one(name):
    values = VALUES[name]
    assert np.mean([2 ** log2_e_rademacher(total, values) for total in all_sums(values)]) == pytest.approx(1)


def test_the_e_value_costs_a_few_bits_against_the_bound():
    values = np.random.default_rng(2).normal(size=180)
    total = 0.7 * float(np.abs(values).sum())
    assert 0 < -log2_rademacher_tail(total, values) - log2_e_rademacher(total, values) < 6


def test_nothing_said_is_no_evidence():
    assert log2_rademacher_tail(0.0, np.zeros(5)) == 0 == log2_e_rademacher(0.0, np.zeros(5))
    assert log2_rademacher_tail(-3.0, np.ones(5)) == 0


def test_the_average_over_checkpoints_has_mean_one_and_only_grows():
    values = VALUES["exponential"]
    ends = []
    for signs in product([-1, 1], repeat=len(values)):
        test, path = CheckpointTest(3), []
        # A sign shows in all later answers: the same units, read ever better.
        for weight in (0.2, 0.5, 1.0):
            seen = values * weight + VALUES["tiny scale"]
            path.append(test.update(float(np.dot(signs, seen)), seen))
        assert path == sorted(path)
        ends.append(2.0 ** path[-1])
    assert np.mean(ends) == pytest.approx(1)
    with pytest.raises(ValueError, match="all 3 checkpoints are taken"):
        test.update(0.0, values)


@pytest.mark.parametrize(
    ("total", "values", "message"),
    [
        (3.0, [1.0, 1.0], "more than all values together"),
        (1.0, [0.0], "must come from the same values"),
        (math.nan, [1.0], "not finite"),
        (1.0, [math.inf], "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(total, values, message):
    with pytest.raises(ValueError, match=message):
        log2_rademacher_tail(total, np.array(values))
