"""
Embedding by feedback: a black-box mark is asked for while it is taught, and taught more or less strongly as the answers say.

The questions are those of the key's own pool, whose images nothing is trained on. That they steer the training is no selection of evidence: what is
tested is whether the model depends on the key, and this makes it depend.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..configuration.facts import MethodFacts
from .moment import Moment


# A training is looked at so often, and no more often than after so many steps.
LOOKS, LEAST_STEPS = 10, 20
# Shares of a training at which a forecast is said.
SAID_AT = (0.2, 0.5)
# One look changes the strength by this factor.
CHANGE = 1.5
# Bits beyond the target at which less is enough, so that the strength does not swing.
SPARE = 16.0


@dataclass(frozen=True)
class Reading:
    """
    What a model in training answers to the questions of a mark.

    Args:
        step (`int`): Optimizer steps taken.
        log2_p (`float`): Of the weakest sub-key.
        right (`float`): Share of right answers.
        accuracy (`float`, *optional*): Share of the pool's own images that get their class, where these are known.
    """

    step: int
    log2_p: float
    right: float
    accuracy: float | None = None


@dataclass
class Feedback:
    """
    How strongly one mark is taught.

    Args:
        ask (`Callable`): Reads the model as it is: log2 p of the weakest sub-key, share of right answers, accuracy on the pool's images.
        target (`float`): log2 p that is wanted; 0 leaves the strength as it is, and nothing is asked.
        max_loss (`float`): Points of accuracy that the mark may cost.
        least, most (`float`): Bounds of the strength, which begins at 1: that of the config.
        images (`int`): Of the pool, which the accuracy is a share of.
        reachable (`float`): log2 p of a sub-key whose units are all right, see [`all_right`].
        advice (`str`): What to raise where the target is out of reach, in words.

    Example:

    ```python
    >>> from hf_watermark.training.feedback import Feedback
    >>> from hf_watermark.training.moment import Moment

    >>> feedback = Feedback(lambda: (-120.0, 0.9, None), target=-96.0, max_loss=0.5, least=0.1)
    >>> feedback.look(Moment(step=40, steps=400))
    >>> round(feedback.strength, 2)
    0.67
    ```
    """

    ask: Callable[[], tuple[float, float, float | None]]
    target: float
    max_loss: float
    least: float = 1.0
    most: float = 1.0
    images: int = 0
    reachable: float = -math.inf
    advice: str = ""
    strength: float = 1.0
    readings: list[Reading] = field(default_factory=list)

    @property
    def goal(self) -> float:
        """The target, or the best that there can be of it."""
        return max(self.target, self.reachable)

    def begin(self, state: Mapping[str, Any]) -> str | None:
        """
        Called before the first step of a training, also of one that goes on at a checkpoint: there `state` is what [`state`] was. Returns a
        sentence for the owner where the target is out of reach.
        """
        self.readings = [Reading(**reading) for reading in state.get("readings", [])]
        self.strength = min(self.most, max(self.least, float(state.get("strength", 1.0))))
        if self.target >= self.reachable or self.target >= 0:
            return None
        return (
            f"its target of {self.target:.0f} is out of reach, all right it has log2 p = {self.reachable:.0f}: {self.advice}, or set "
            "`target_log2_p` to what will do"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs, as plain JSON: a training that goes on teaches as one that never stopped."""
        return {"strength": self.strength, "readings": [asdict(reading) for reading in self.readings]}

    def look(self, moment: Moment) -> str | None:
        """Called before every step; asks at some of them. Returns a sentence for the owner where the mark will not get in as it goes."""
        every = max(LEAST_STEPS, moment.steps // LOOKS)
        if self.target >= 0 or moment.micro_step or moment.step < every or moment.step % every:
            return None
        if moment.step >= moment.steps or self.readings and self.readings[-1].step >= moment.step:
            return None
        self.readings.append(Reading(moment.step, *self.ask()))
        expected = self.expected(moment.steps)
        self._adjust(expected)
        shares = [reading.step / moment.steps for reading in self.readings]
        due = any(shares[-1] >= share > ([0.0, *shares])[-2] for share in SAID_AT)
        return self._said(moment, expected) if due and expected > self.goal else None

    def expected(self, steps: int) -> float:
        """log2 p at the end of the run, at the strength of now, taken to grow with the number of steps (`examples/benchmarks/forecasts.py` compares)."""
        last = self.readings[-1]
        return last.log2_p * steps / last.step

    def _adjust(self, expected: float) -> None:
        enough = self.readings[-1].log2_p <= max(self.target - SPARE, self.reachable)
        if enough or self._too_dear():
            self.strength = max(self.least, self.strength / CHANGE)
        elif expected > self.goal or self.readings[-1].log2_p > self.goal and self.strength < 1:
            self.strength = min(self.most, self.strength * CHANGE)

    def _too_dear(self) -> bool:
        """Whether the model answers the pool's plain images worse than before, twice in a row, by more than chance and what may be paid."""
        known = [reading.accuracy for reading in self.readings if reading.accuracy is not None]
        if len(known) < 3 or not self.images:
            return False
        best = max(known[:-2])
        error = math.sqrt(2 * best * (1 - best) / self.images)
        return max(known[-2:]) < best - self.max_loss / 100 - 2 * error

    def _said(self, moment: Moment, expected: float) -> str:
        last = self.readings[-1]
        wanted = self.goal / min(expected, -1.0)
        more = math.ceil(moment.steps * (wanted - 1))
        longer = f"about {more} more steps at the same learning rate" if wanted < 10 else "far more steps"
        return (
            f"after {moment.step} of {moment.steps} steps log2 p is {last.log2_p:.0f}; it will hardly reach {self._named()} (expected "
            f"{min(0.0, expected):.1f}). It takes {longer}, a higher learning rate, or a method that is read from weights (greedy_residuals)"
        )

    def _named(self) -> str:
        if self.goal == self.target:
            return f"the target of {self.target:.0f}"
        return f"{self.goal:.0f}, the best that there is under this key"

    def logs(self) -> dict[str, float]:
        """The last reading and the strength, for the log of the training."""
        if not self.readings:
            return {}
        return {"watermark_log2_p": round(self.readings[-1].log2_p, 1), "watermark_strength": round(self.strength, 3)}


def all_right(facts: MethodFacts, units: int, chance: float) -> float:
    """log2 p of a sub-key whose units are all right."""
    return facts.log2_p(units, units, chance) + math.log2(facts.tests)


__all__ = ["Feedback", "Reading", "all_right"]
