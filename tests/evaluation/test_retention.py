"""The reference toolbox's definitions, by hand."""

import numpy as np
import pytest
from scipy.stats import binom

from hf_watermark.evaluation.retention import (
    attack_succeeds,
    decision_threshold,
    embedding_loss,
    exact_threshold,
    pareto_front,
    retention,
    stealing_loss,
)


def test_losses_are_differences_to_the_unmarked_model():
    assert stealing_loss(clean_accuracy=0.93, attacked_accuracy=0.90) == pytest.approx(0.03)
    assert stealing_loss(0.90, 0.93) == pytest.approx(-0.03)
    assert embedding_loss(0.93, 0.925) == pytest.approx(0.005)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.62, 0.9])
def test_retention_is_one_when_all_match_and_half_at_the_threshold(threshold):
    assert retention(100, 100, threshold) == pytest.approx(1)
    assert retention(round(100 * threshold), 100, threshold) == pytest.approx(0.5)
    assert retention(0, 100, threshold) == pytest.approx(max(0.0, (0.5 - threshold) / (1 - threshold)))


def test_retention_is_linear_and_stops_at_zero():
    assert retention(80, 100, 0.6) == pytest.approx(0.75)
    assert retention(10, 100, 0.6) == 0.0


def test_the_toolbox_threshold_is_a_normal_fit_rounded_up():
    counts = np.random.default_rng(0).binomial(200, 0.5, 2000)
    by_hand = np.ceil(counts.mean() + 1.6448536 * counts.std()) / 200
    found = decision_threshold(counts.tolist(), 200)
    assert by_hand <= found < by_hand + 0.01 and round(100 * found) == pytest.approx(100 * found)
    assert decision_threshold([7, 7, 7], 10) == 0.2  # the toolbox's fallback: two matches exceed 1.64


@pytest.mark.parametrize(("trials", "p", "chance"), [(100, 0.05, 0.5), (512, 1e-3, 0.5), (60, 0.05, 1 / 9)])
def test_the_exact_threshold_is_the_least_share_with_a_small_tail(trials, p, chance):
    count = round(exact_threshold(trials, p, chance) * trials)
    assert binom.sf(count - 1, trials, chance) <= p < binom.sf(count - 2, trials, chance)


def test_an_attack_succeeds_if_the_mark_is_gone_and_the_model_is_not():
    assert attack_succeeds(0.49, 0.049)
    assert not attack_succeeds(0.5, 0.0)
    assert not attack_succeeds(0.1, 0.05)


def test_the_pareto_front_holds_what_nothing_beats():
    points = [(0.02, 0.9), (0.03, 0.4), (0.03, 0.7), (0.10, 0.4), (0.20, 0.1), (0.01, 1.0)]
    assert pareto_front(points) == [5, 0, 1, 4]
    assert pareto_front([]) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stealing_loss(93.0, 0.9), "clean_accuracy=93.0 is not usable"),
        (lambda: stealing_loss(0.9, float("nan")), "attacked_accuracy=nan is not usable"),
        (lambda: embedding_loss(0.9, -1), "marked_accuracy=-1 is not usable"),
        (lambda: retention(5, 0, 0.5), "trials=0 is not usable"),
        (lambda: retention(11, 10, 0.5), "matches=11 is not usable"),
        (lambda: retention(5, 10, 1.0), "threshold=1.0 is not usable"),
        (lambda: decision_threshold([], 10), "null_matches is empty"),
        (lambda: decision_threshold([5], 10, p=0), "p=0 is not usable"),
        (lambda: exact_threshold(10, chance=1), "chance=1 is not usable"),
        (lambda: exact_threshold(4), "trials=4 is not usable; so few elements"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
