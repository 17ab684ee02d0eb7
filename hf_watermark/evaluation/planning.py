"""How much mark is needed: bits, triggers and queries for a p-value, from exact statistics and measured survival."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..configuration.facts import MethodFacts
from ..mapping import method_entry
from ..serialization import InvalidInput
from ..statistics import log2_binomial_tail
from .measured import fidelity_rows, rates_after


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
    entry = method_entry(method)
    if not 0 < target_p < 1:
        raise InvalidInput(f"target p is {target_p:g}: choose a number between 0 and 1, such as 1e-9")
    if not (0 < power < 1 and 0 < rate <= 1 and looks >= 1 and classes >= 2):
        raise InvalidInput(
            f"rate {rate}, power {power}, looks {looks}, classes {classes}: give shares in (0, 1] for rate and power, at least 1 look and 2 classes"
        )
    facts, config_class = entry.facts, entry.load("Config")
    config = config_class()
    chance = facts.null(config, classes).chance
    if chance >= 1:
        raise InvalidInput(f"{method} needs more than {classes} classes: an unrelated key is always right")
    if rate <= chance:
        raise InvalidInput(
            f"a match rate of {rate:.3g} is no more than the {chance:.3g} that an unrelated key reaches with {method} at "
            f"{classes} classes; no number of {facts.unit} proves anything after such an attack"
        )
    charged = math.log2(looks) + math.log2(facts.tests)
    target = math.log2(target_p) - charged
    most = facts.most_units(config, classes)
    units = _smallest(lambda n: _power(_needed(facts, n, target, chance), n, rate) >= power, most)
    if units is None:
        raise InvalidInput(
            f"more than the {most} {facts.unit} that {method} can have at {classes} classes would be needed for p = {target_p:g} at a match "
            f"rate of {rate:.3g}; use more classes, a method with more room, or ask for less"
        )
    needed = _needed(facts, units, target, chance)
    assert needed is not None
    fields = facts.fields(units, classes)
    return MarkPlan(
        method=method,
        unit=facts.unit,
        units=units,
        needed=needed,
        rate=rate,
        power=_power(needed, units, rate),
        log2_p=min(0.0, facts.log2_p(needed, units, chance) + charged),
        queries=facts.queries(config_class(**fields), classes),
        fields=fields,
        assumption=facts.assumption,
    )


def _needed(facts: MethodFacts, units: int, log2_p: float, chance: float) -> int | None:
    """The fewest matches of so many units that give this log2 p; `None` where not even all do."""
    if facts.log2_p(units, units, chance) > log2_p:
        return None
    return bisect_left(range(units), True, key=lambda matches: facts.log2_p(matches, units, chance) <= log2_p)


def _power(needed: int | None, units: int, rate: float) -> float:
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


def capacity_of(method: str, model: Any, bits: int) -> dict[str, Any] | None:
    """
    How many sub-keys of `bits` bits a white-box method embeds by default, and the most bits that one sub-key could have; `None` for
    black-box methods, whose room are the classes and images. Shapes are enough, nothing is trained.
    """
    entry = method_entry(method)
    if entry.access != "weights":
        return None

    from ..backbones import layout_of

    config = entry.load("Config")(**entry.facts.fields(bits, model.config.num_labels))
    found = entry.facts.capacity(config, layout_of(model))
    if found is None:
        return None
    return {"parameters": model.num_parameters(), "most_bits": found.most_units, "subkeys": found.subkeys}


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
