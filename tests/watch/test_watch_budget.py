"""The error budget: what a look may spend, that it lasts for ever, and what is left of it under dependence."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hf_watermark.watch import Budget
from hf_watermark.watch.budget import GAMMA_SUM, SpentForEver
from hf_watermark.watch.report import spent_by


BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
watch_budget = SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "watch_budget.py")))


def test_all_looks_ever_spend_at_most_the_budget():
    gamma = SpentForEver().gamma
    first = 200_000

    spent = sum(map(gamma, range(1, first + 1)))

    # What is left is at most the integral of 1 / ((t + 1) log^2 (t + 1)).
    assert spent + 1 / (GAMMA_SUM * math.log(first + 1)) < 1
    assert spent + 1 / (GAMMA_SUM * math.log(first + 1)) > 0.999
    assert all(gamma(look) > gamma(look + 1) > 0 for look in (1, 2, 10, 10**6, 10**12))


def test_what_is_said_to_be_spent_is_what_looks_may_spend():
    assert spent_by(0.01, 1000) == pytest.approx(sum(map(SpentForEver().gamma, range(1, 1001))) * 0.01)
    assert spent_by(0.01, 10**6) < spent_by(0.01, 10**9) < 0.01


def test_a_budget_goes_on_where_the_table_ends():
    values = [(-5.0, 3.0), (-40.0, 38.0), (0.0, -10.0), (-60.0, 58.0), (-3.0, 1.0)] * 20
    whole = Budget(0.01, 0.05)
    decisions = [whole.decide(*value) for value in values]

    for cut in (1, 37, 99):
        again = Budget(0.01, 0.05, decisions[cut - 1].look, decisions[cut - 1].discoveries)
        assert [again.decide(*value) for value in values[cut:]] == decisions[cut:]


def test_a_strong_look_alarms_after_any_number_of_others():
    for looks in (0, 10**6, 10**9):
        budget = Budget(0.01, 0.05, looks)
        assert budget.next_log2_alpha() == pytest.approx(math.log2(0.01 * SpentForEver().gamma(looks + 1)))
        decision = budget.decide(-48.0, 46.0)
        assert decision.alarm and decision.discovery and decision.look == looks + 1
    assert not Budget(0.01, 0.05, 10**6).decide(-30.0, 20.0).alarm


def test_values_that_no_float_holds_are_taken():
    decision = Budget(0.01, 0.05).decide(-256.0, 5000.0)
    assert decision.alarm and decision.discovery
    assert not Budget(0.01, 0.05).decide(0.0, -5000.0).discovery


def test_discoveries_make_the_next_ones_easier_and_alarms_do_not():
    budget = Budget(0.01, 0.05, looks=100)
    first = budget.decide(-60.0, 58.0)
    assert first.discovery and budget.decide(-1.0, 0.0).discoveries == 1
    few, many = Budget(0.01, 0.05, 1000, 1), Budget(0.01, 0.05, 1000, 50)
    assert not few.decide(-20.0, 19.5).discovery and many.decide(-20.0, 19.5).discovery


def test_null_looks_stay_within_the_budget_however_they_depend():
    # A budget that is nearly spent by so many looks: a rule that forgets to fall would go far beyond it.
    result = watch_budget.simulate(looks=3000, repetitions=120, budget=0.5, fdr=0.2, marked=5, seed=1)

    for kind in ("independent", "copies", "one_for_all"):
        row = result[kind]
        assert row["false_alarms"] <= 0.5 + 3 * row["false_alarms_error"]
        assert row["fdr"] <= 0.2 + 3 * row["fdr_error"]
    assert result["independent"]["false_alarms"] > 0.1  # it is a budget, and it is used
    assert result["independent"]["power_at_2^-40"] == 1.0
    unlimited = watch_budget.simulate(looks=3000, repetitions=20, budget=0.5, fdr=0.2, marked=0, seed=1, fixed=0.001)
    assert unlimited["independent"]["false_alarms"] > 1.5


def test_p_values_of_the_simulation_are_uniform():
    rng = np.random.default_rng(0)
    for kind in watch_budget.KINDS:
        p = np.concatenate([watch_budget.null_p(kind, 2000, rng) for _ in range(200)])
        assert abs((p <= 0.1).mean() - 0.1) < 0.03


def test_the_rules_of_the_simulation_are_those_of_the_watch():
    rng = np.random.default_rng(5)
    p = rng.random(500) ** 4
    p[::50] = 2.0**-50
    e = 0.5 / np.sqrt(p)
    gamma = watch_budget.gammas(500)
    budget = Budget(0.3, 0.2)

    decisions = [budget.decide(math.log2(one), math.log2(value)) for one, value in zip(p, e, strict=True)]

    assert [decision.alarm for decision in decisions] == (p <= 0.3 * gamma).tolist()
    assert [decision.discovery for decision in decisions] == watch_budget.discoveries(e, gamma, 0.2).tolist()
    assert any(decision.discovery for decision in decisions)
