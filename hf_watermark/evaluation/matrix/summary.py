"""Rows of a table taken together: over seeds, per attack, per method."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student_t

from ...attacks.outcome import REMOVED, RUINED, SURVIVED, is_ruined
from ...evidence import Verdict
from .cells import NO_ATTACK, ON_TWIN


Row = Mapping[str, Any]
# Of Lukas et al. (S&P 2022): a removal that costs five points of accuracy is dear.
AFFORDABLE_LOSS = 0.05


@dataclass(frozen=True)
class Outcome:
    """
    One attack on one method, over seeds.

    Args:
        runs (`int`):
            Seeds in which the attack could be run.
        found (`int`):
            Seeds in which the mark was found afterwards.
        log2_p (`float`, *optional*):
            The weakest evidence over seeds; `None` where no seed was checked.
        accuracy, stealing_loss, retention (`float`, *optional*):
            Means over the seeds where they are known.
        half_width (`float`, *optional*):
            Of the 95 % interval (Student's t) of the accuracy; `None` for one seed.
        cpu_seconds (`float`):
            Mean, attack and check together.
    """

    method: str
    attack: str
    attack_name: str
    seeds: int
    runs: int
    found: int
    log2_p: float | None
    accuracy: float | None
    half_width: float | None
    stealing_loss: float | None
    retention: float | None
    cpu_seconds: float
    steps: int
    queries: int
    epochs: float
    reasons: tuple[str, ...]

    @property
    def applies(self) -> bool:
        return self.runs > 0

    @property
    def removed(self) -> bool:
        """Whether the mark was missed in at least one seed."""
        return self.found < self.runs

    @property
    def affordable(self) -> bool:
        """Whether the attack is cheap; unknown where the labels changed, and then it counts as cheap."""
        return self.stealing_loss is None or self.stealing_loss < AFFORDABLE_LOSS

    @property
    def ruined(self) -> bool:
        """Whether less than half of the accuracy is left; unknown where the labels changed, and then it counts as kept."""
        lost = self.stealing_loss
        return self.accuracy is not None and lost is not None and is_ruined(self.accuracy, self.accuracy + lost)

    @property
    def fate(self) -> str:
        """What became of the mark with every seed, or of the model: `survived`, `removed`, `model ruined` or `n/a`."""
        if not self.applies:
            return "n/a"
        return RUINED if self.ruined else REMOVED if self.removed else SURVIVED

    @property
    def succeeds(self) -> bool:
        """Whether it removes the mark at an affordable loss."""
        return self.fate == REMOVED and self.affordable


def outcomes(rows: Iterable[Row]) -> list[Outcome]:
    """One [`Outcome`] per method and attack, in the order of the rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["attack"]), []).append(row)
    return [_outcome(method, attack, group) for (method, attack), group in groups.items()]


def _outcome(method: str, attack: str, rows: Sequence[Row]) -> Outcome:
    checked = [row for row in rows if row["log2_p"] is not None]
    accuracies = known(rows, "accuracy")
    return Outcome(
        method=method,
        attack=attack,
        attack_name=rows[0]["attack_name"],
        seeds=len(rows),
        runs=len(checked),
        found=sum(row["verdict"] == Verdict.FOUND for row in checked),
        log2_p=max((row["log2_p"] for row in checked), default=None),
        accuracy=mean(accuracies),
        half_width=half_width(accuracies),
        stealing_loss=mean(known(rows, "stealing_loss")),
        retention=mean(known(rows, "retention")),
        cpu_seconds=mean(known(rows, "cpu_seconds")) or 0.0,
        steps=max(row["steps"] for row in rows),
        queries=max(row["queries"] for row in rows),
        epochs=max(row["epochs"] for row in rows),
        reasons=tuple(dict.fromkeys(row["reason"] for row in rows if row["reason"])),
    )


def known(rows: Iterable[Row], column: str) -> list[float]:
    return [row[column] for row in rows if row[column] is not None]


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % confidence interval of a mean (Student's t); `None` for fewer than two values."""
    count = len(values)
    if count < 2:
        return None
    average = sum(values) / count
    spread = math.sqrt(sum((value - average) ** 2 for value in values) / (count - 1))
    return float(student_t.ppf(0.975, count - 1)) * spread / math.sqrt(count)


def is_attack(outcome: Outcome) -> bool:
    return outcome.attack not in (NO_ATTACK, ON_TWIN)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """
    The points that no other beats for the thief, by rising stealing loss: who wants less of the mark (second number) has to give up
    more accuracy (first number).
    """
    front: list[tuple[float, float]] = []
    for loss, kept in sorted(points):
        if not front or kept < front[-1][1]:
            front.append((loss, kept))
    return front


@dataclass(frozen=True)
class MethodSummary:
    """
    What a reader wants to know first about one method.

    Args:
        precision (`str`):
            Of every training, see [`~config.MatrixConfig`].
        attacks (`int`):
            Attacks that leave a model worth stealing; `survived` of them leave the mark.
        weakest (`list[Outcome]`):
            Attacks that remove the mark at an affordable loss, cheapest for the thief first.
        costly (`int`):
            Attacks that remove it only with a loss of five points or more, and leave a model.
        ruined (`int`):
            Attacks that leave less than half of the accuracy. Whether they leave the mark is no merit of it.
    """

    method: str
    precision: str
    accuracy: float | None
    half_width: float | None
    twin_accuracy: float | None
    embedding_loss: float | None
    found: int
    seeds: int
    false_alarms: int
    attacks: int
    survived: int
    weakest: list[Outcome]
    costly: int
    ruined: int


def method_summaries(rows: Sequence[Row]) -> list[MethodSummary]:
    """One [`MethodSummary`] per method, in the order of the rows."""
    return [
        _method_summary(method, [row for row in rows if row["method"] == method])
        for method in dict.fromkeys(row["method"] for row in rows)
    ]


def _method_summary(method: str, rows: Sequence[Row]) -> MethodSummary:
    found = outcomes(rows)
    run = [outcome for outcome in found if is_attack(outcome) and outcome.applies]
    attacks = [outcome for outcome in run if not outcome.ruined]
    per_seed = {(row["seed"], row["model_cell"]): row for row in rows}.values()
    accuracies = known(per_seed, "marked_accuracy")
    plain = [row for row in rows if row["attack"] == NO_ATTACK]
    return MethodSummary(
        method=method,
        precision=rows[0]["precision"],
        accuracy=mean(accuracies),
        half_width=half_width(accuracies),
        twin_accuracy=mean(known(per_seed, "twin_accuracy")),
        embedding_loss=mean(known(per_seed, "embedding_loss")),
        found=sum(row["verdict"] == Verdict.FOUND for row in plain),
        seeds=len(plain),
        false_alarms=sum(row["verdict"] == Verdict.FOUND for row in rows if row["attack"] == ON_TWIN),
        attacks=len(attacks),
        survived=sum(outcome.fate == SURVIVED for outcome in attacks),
        weakest=sorted((o for o in attacks if o.succeeds), key=lambda o: o.stealing_loss or 0.0),
        costly=sum(outcome.fate == REMOVED and not outcome.affordable for outcome in attacks),
        ruined=len(run) - len(attacks),
    )
