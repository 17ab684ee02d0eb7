"""The reference toolbox's definitions, by hand."""

import pytest
from scipy.stats import binom

from hf_watermark.evaluation.retention import (
    best_retention,
    embedding_loss,
    exact_threshold,
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


@pytest.mark.parametrize(("trials", "p", "chance"), [(100, 0.05, 0.5), (512, 1e-3, 0.5), (60, 0.05, 1 / 9)])
def test_the_exact_threshold_is_the_least_share_with_a_small_tail(trials, p, chance):
    count = round(exact_threshold(trials, p, chance) * trials)
    assert binom.sf(count - 1, trials, chance) <= p < binom.sf(count - 2, trials, chance)


def test_of_stacked_marks_the_best_is_retained():
    bits, rules = {"chance": 1 / 2, "shared": 1}, {"chance": 1 / 98, "shared": 4}
    parts = [{"matches": 50, "trials": 100} | bits, {"matches": 90, "trials": 90} | bits]
    assert best_retention(parts) == pytest.approx(1.0)
    assert best_retention([]) == best_retention([{"matches": 0, "trials": 0} | bits]) == 0.0
    # The null is the row's own: ten rules of four images among a hundred classes.
    assert best_retention([{"matches": 20, "trials": 40} | rules]) == retention(
        20, 40, exact_threshold(10, chance=1 / 98)
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stealing_loss(93.0, 0.9), "clean_accuracy=93.0 is not usable"),
        (lambda: stealing_loss(0.9, float("nan")), "attacked_accuracy=nan is not usable"),
        (lambda: embedding_loss(0.9, -1), "marked_accuracy=-1 is not usable"),
        (lambda: retention(5, 0, 0.5), "trials=0 is not usable"),
        (lambda: retention(11, 10, 0.5), "matches=11 is not usable"),
        (lambda: retention(5, 10, 1.0), "threshold=1.0 is not usable"),
        (lambda: exact_threshold(10, chance=1), "chance=1 is not usable"),
        (lambda: exact_threshold(4), "trials=4 is not usable; so few elements"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
