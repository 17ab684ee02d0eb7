"""Plans against direct computation."""

import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from hf_watermark import FunctionCoupledConfig, InvalidInput
from hf_watermark.evaluation.measured import MEASURED, fidelity_rows, rates_after, shipped_measurements
from hf_watermark.evaluation.planning import expected_rate, plan_mark
from hf_watermark.statistics import log2_rademacher_tail


ROOT = Path(__file__).parents[2]


def smallest_by_hand(target_p: float, rate: float, chance: float, power: float) -> tuple[int, int]:
    for n in range(1, 5000):
        needed = next((k for k in range(n + 2) if binom.sf(k - 1, n, chance) <= target_p), n + 1)
        if needed <= n and binom.sf(needed - 1, n, rate) >= power:
            return n, needed
    raise AssertionError


@pytest.mark.parametrize("rate", [0.7, 0.85, 1.0])
@pytest.mark.parametrize("target_p", [1e-3, 1e-9])
def test_bits_of_a_white_box_mark(target_p, rate):
    plan = plan_mark("greedy_residuals", target_p, rate)

    assert (plan.units, plan.needed) == smallest_by_hand(target_p, rate, 0.5, 0.95)
    assert plan.power == pytest.approx(binom.sf(plan.needed - 1, plan.units, rate))
    assert 2.0**plan.log2_p <= target_p and plan.queries == 0 and plan.fields == {"bits": plan.units}


def test_rules_triggers_and_their_queries():
    rules = plan_mark("function_coupled", 1e-9, 0.6)
    assert (rules.units, rules.needed) == smallest_by_hand(1e-9, 0.6, 1 / 8, 0.95)
    assert rules.queries == FunctionCoupledConfig().images_per_rule * rules.units

    # Two tests are run, plain and smoothed, at the price of one bit.
    triggers = plan_mark("certified", 1e-9, 0.6)
    assert (triggers.units, triggers.needed) == smallest_by_hand(0.5e-9, 0.6, 1 / 9, 0.95)
    assert triggers.queries == triggers.units


def test_signs_use_the_proven_bound():
    plan = plan_mark("usp", 1e-9, 0.9)

    wanted = math.log2(1e-9)
    assert log2_rademacher_tail(2.0 * plan.needed - plan.units, np.ones(plan.units)) <= wanted
    assert log2_rademacher_tail(2.0 * (plan.needed - 1) - plan.units, np.ones(plan.units)) > wanted
    assert plan.power >= 0.95 and plan.units <= plan.fields["features"] * 9 < plan.units + 9


def test_looks_are_charged():
    assert (
        plan_mark("greedy_residuals", 1e-9, 0.8, looks=1024).units
        == plan_mark("greedy_residuals", 1e-9 / 1024, 0.8).units
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("greedy_residuals", 1e-9, 0.5), "no more than the 0.5"),
        (("function_coupled", 1e-9, 0.12), "no more than"),
        (("function_coupled", 1e-9, 0.14), "more than the 180 rules"),
        (("greedy_residuals", 0.0, 0.9), "target p is 0"),
        (("greedy_residuals", 1e-9, 1.5), "give shares in .0, 1. for rate and power"),
        (("nonesuch", 1e-9, 0.9), "'nonesuch' does not exist"),
    ],
)
def test_what_cannot_be_planned(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        plan_mark(*arguments)


def test_two_classes_have_no_rules():
    with pytest.raises(InvalidInput, match="more than 2 classes"):
        plan_mark("function_coupled", 1e-9, 0.9, classes=2)


def test_measured_figures_name_their_files():
    measured = shipped_measurements()

    assert len(measured.entries) > 50
    assert {item.source for item in measured.entries} <= {source.name for source in measured.sources}
    for method in ("greedy_residuals", "function_coupled", "certified", "usp", "watermas"):
        rows = fidelity_rows(method)
        assert rows and all(row["seeds"] >= 2 and row["sources"] for row in rows), method


def test_the_shipped_table_is_what_the_script_makes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["measured_table.py", "--output", str(tmp_path / "m.json")])

    runpy.run_path(str(ROOT / "examples" / "benchmarks" / "measured_table.py"), run_name="__main__")

    assert (tmp_path / "m.json").read_text() == (ROOT / "hf_watermark" / "evaluation" / MEASURED).read_text()


def test_a_rate_is_given_or_measured():
    assert expected_rate("greedy_residuals", None, 0.8) == (0.8, "given")
    rate, origin = expected_rate("greedy_residuals", "finetune_lr_1x", None)
    assert rate == rates_after("greedy_residuals")["finetune_lr_1x"] and "measured" in origin
    with pytest.raises(InvalidInput, match="no measured match rate after 'prayer'"):
        expected_rate("greedy_residuals", "prayer", None)
    with pytest.raises(InvalidInput, match="exactly one"):
        expected_rate("greedy_residuals", None, None)
