"""How much mark is needed: bits, triggers and queries for a p-value, from exact statistics and measured survival."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..mapping import method_entry
from ..methods.soft_label.config import MOST_FEATURES, free_signs
from ..serialization import InvalidInput
from ..statistics import binomial_min_matches, log2_binomial_tail, log2_rademacher_tail
from ..training.triggers import LAYOUTS, rule_capacity
from .measured import fidelity_rows, rates_after


def most_units(method: str, classes: int) -> int:
    """The most units that one sub-key of a method can have."""
    config = method_entry(method).load("Config")()
    if method == "function_coupled":
        return rule_capacity(min(classes, config.source_classes), LAYOUTS if config.fusion == "direct" else 1, 1)
    if method in ("usp", "csp"):
        return MOST_FEATURES * free_signs(classes)
    return 10_000 if method == "certified" else 2**16


@dataclass(frozen=True)
class MarkPlan:
    """
    What one sub-key of a method has to carry.

    Args:
        units (`int`):
            Independent draws of the key: bits, rules, triggers or signs.
        needed (`int`):
            Of these have to match for the p-value.
        rate (`float`):
            Share of units that is expected to match on the attacked suspect.
        power (`float`):
            Chance that enough match, if units survive independently of each other. Real attacks hit neighbouring units together, so it is
            a guide; the p-value is not touched by this.
        log2_p (`float`):
            What `needed` matches give.
        queries (`int`):
            Images that the suspect is asked; 0 where weights are read.
    """

    method: str
    unit: str
    units: int
    needed: int
    rate: float
    power: float
    log2_p: float
    queries: int
    fields: dict[str, int]
    assumption: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_mark(
    method: str, target_p: float, rate: float, classes: int = 10, power: float = 0.95, looks: int = 1
) -> MarkPlan:
    """
    The smallest number of units at which a suspect whose units match at `rate` reaches `target_p`, looks charged, with probability `power`.

    Args:
        method (`str`):
            A key of `mapping.METHODS`.
        target_p (`float`):
            p-value to reach, such as 1e-9.
        rate (`float`):
            Expected share of matches after attacks.
        classes (`int`, *optional*, defaults to 10):
            Labels of the model; more of them make each answer worth more.

    Raises:
        [`~serialization.InvalidInput`]: when the rate is no better than chance, or no admissible number of units suffices.
    """
    method_entry(method)
    if not 0 < target_p < 1:
        raise InvalidInput(f"target p is {target_p:g}: choose a number between 0 and 1, such as 1e-9")
    if not (0 < power < 1 and 0 < rate <= 1 and looks >= 1 and classes >= 2):
        raise InvalidInput(f"rate {rate}, power {power}, looks {looks}, classes {classes}: out of range")
    law = _law(method, classes, looks)
    if rate <= law.chance:
        raise InvalidInput(
            f"a match rate of {rate:.3g} is no more than the {law.chance:.3g} that an unrelated key reaches with {method} at "
            f"{classes} classes; no number of {law.unit} proves anything after such an attack"
        )
    target = math.log2(target_p)
    most = most_units(method, classes)
    units = _smallest(lambda n: _power(law, n, rate, target) >= power, most)
    if units is None:
        raise InvalidInput(
            f"more than the {most} {law.unit} that {method} can have at {classes} classes would be needed for p = {target_p:g} at a match "
            f"rate of {rate:.3g}; use more classes, a method with more room, or ask for less"
        )
    needed = law.needed(units, target)
    assert needed is not None
    fields, queries = _fields(method, units, classes)
    return MarkPlan(
        method=method,
        unit=law.unit,
        units=units,
        needed=needed,
        rate=rate,
        power=_power(law, units, rate, target),
        log2_p=law.log2_p(needed, units),
        queries=queries,
        fields=fields,
        assumption=law.assumption,
    )


@dataclass(frozen=True)
class _Law:
    """The null of one sub-key in units: chance of a match, and log2 p of k matches of n."""

    unit: str
    chance: float
    log2_p: Callable[[int, int], float]
    needed: Callable[[int, float], int | None]
    assumption: str


def _law(method: str, classes: int, looks: int) -> _Law:
    extra = math.log2(looks)
    if method in ("usp", "csp"):

        def signs(k: int, n: int) -> float:
            return min(0.0, log2_rademacher_tail(float(2 * k - n), np.ones(n)) + extra)

        def least(n: int, target: float) -> int | None:
            return (
                None if signs(n, n) > target else bisect_left(range(n + 1), True, key=lambda k: signs(k, n) <= target)
            )

        return _Law("signs", 0.5, signs, least, "signs of equal size; Chernoff bound of their sum")
    unit, chance, assumption = {
        "greedy_residuals": ("bits", 0.5, "exact binomial"),
        "watermas": ("bits", 0.5, "exact binomial"),
        # A rule whose answers agree counts once: its target is drawn once.
        "function_coupled": (
            "rules",
            1 / max(1, classes - 2),
            "the answers to one rule agree; exact binomial over rules",
        ),
        "certified": (
            "triggers",
            1 / max(1, classes - 1),
            "exact binomial; one bit for two tests, plain and smoothed",
        ),
    }[method]
    if chance >= 1:
        raise InvalidInput(f"{method} needs more than {classes} classes: an unrelated key is always right")
    extra += 1.0 if method == "certified" else 0.0

    def log2_p(k: int, n: int) -> float:
        return min(0.0, log2_binomial_tail(k, n, chance) + extra)

    return _Law(unit, chance, log2_p, lambda n, target: binomial_min_matches(n, target - extra, chance), assumption)


def _power(law: _Law, units: int, rate: float, target: float) -> float:
    needed = law.needed(units, target)
    if needed is None:
        return 0.0
    return 1.0 if rate >= 1 else 2.0 ** log2_binomial_tail(needed, units, rate)


def _smallest(enough: Callable[[int], bool], most: int) -> int | None:
    """
    The smallest number from 1 to `most` that is enough. Power saw-tooths a little with the number of units, so up to 1024 every number is
    looked at; beyond, only the last 64 before the border that bisection finds.
    """
    upper = 1
    while not enough(upper):
        if upper >= most:
            return None
        upper = min(2 * upper, most)
    low, high = upper // 2, upper
    while high > 1024 and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    first = 1 if high <= 1024 else high - 64
    return next(n for n in range(first, high + 1) if enough(n))


def _fields(method: str, units: int, classes: int) -> tuple[dict[str, int], int]:
    """Config fields that give so many units, and how many images a verifier then asks."""
    config = method_entry(method).load("Config")()
    if method in ("greedy_residuals", "watermas"):
        return {"bits": units}, 0
    if method == "function_coupled":
        return {"rules": units}, units * config.images_per_rule
    if method == "certified":
        return {"triggers": units}, units
    features = math.ceil(units / free_signs(classes))
    return {"features": features}, min(classes, config.source_classes) * config.pool_per_class


def expected_rate(method: str, attack: str | None, rate: float | None) -> tuple[float, str]:
    """
    The rate to plan with, and where it comes from: given, or the worst that was measured after an attack (`*`: after any that left more
    than chance).
    """
    if (attack is None) == (rate is None):
        raise InvalidInput("give exactly one of --rate SHARE and --after ATTACK")
    if rate is not None:
        return rate, "given"
    measured = rates_after(method)
    if attack not in measured:
        raise InvalidInput(
            f"{method}: no measured match rate after {attack!r}; there are: {', '.join(measured) or 'none, give --rate'}"
        )
    return measured[attack], f"worst measured after {attack}"


def plan_document(plan: MarkPlan, target_p: float, origin: str, capacity: dict[str, Any] | None) -> dict[str, Any]:
    """The plan with its fidelity from measured tables, as JSON."""
    return {
        "target_p": target_p,
        "plan": plan.to_dict(),
        "rate_from": origin,
        "capacity": capacity,
        "fidelity": fidelity_rows(plan.method),
    }
