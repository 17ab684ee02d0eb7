"""What is left of a training, and how much of a mark it can put in at most."""

import math
from dataclasses import dataclass
from typing import Any

from ..keys import Claim, public_subkeys
from ..statistics import log2_binomial_tail


# Points at which a schedule of many steps is looked at.
POINTS = 1000


@dataclass(frozen=True)
class Course:
    """
    The optimizer steps to come.

    Args:
        steps (`int`):
            How many.
        rates (`float`):
            Sum of their learning rates.
        batch (`int`):
            Images per step, over all processes and backward passes.
        momentum (`float`, *optional*):
            Of an optimizer whose steps are as large as its gradients (SGD); `None` of one that divides these by their size (Adam and its kin,
            Lion, Adafactor, Muon), so that a weight moves by about a learning rate per step.
        clip (`float`):
            Largest norm of a gradient.
    """

    steps: int
    rates: float
    batch: int
    momentum: float | None = None
    clip: float = math.inf

    @classmethod
    def of(cls, trainer: Any) -> "Course":
        """Of a [`~transformers.Trainer`] whose training begins."""
        args, state = trainer.args, trainer.state
        steps = max(0, state.max_steps - state.global_step)
        micro = trainer._train_batch_size * args.world_size
        optimizer: Any = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        group = max(optimizer.param_groups, key=_rate)
        plain = type(optimizer).__name__ in ("SGD", "ASGD")
        return cls(
            steps,
            _sum_of_rates(trainer.lr_scheduler, group, optimizer.param_groups.index(group), state.global_step, steps),
            micro * args.gradient_accumulation_steps,
            float(group.get("momentum", 0.0)) if plain else None,
            args.max_grad_norm or math.inf,
        )

    def reach(self, gradient: Any, norm: float = 0.0) -> Any:
        """
        The farthest that a weight gets, in its own units, while its gradient is `gradient` (a number or a tensor) and that of all weights
        together has the norm `norm`.
        Other losses only shorten the way: they pull it elsewhere, and take their share of the clipped norm.
        """
        if self.momentum is None:
            return self.rates
        return self.rates * gradient * min(1.0, self.clip / max(norm, 1e-12)) / max(1 - self.momentum, 1e-3)


def _rate(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))


def _sum_of_rates(scheduler: Any, group: dict[str, Any], number: int, first: int, steps: int) -> float:
    """Of the schedules of transformers exactly (or at 1000 points); of another one as if the rate stayed as it is set."""
    scheduler = getattr(scheduler, "scheduler", scheduler)
    shares = getattr(scheduler, "lr_lambdas", None)
    if not shares or not steps:
        return _rate(group) * steps
    points = min(steps, POINTS)
    seen = [float(shares[number](first + place * steps // points)) for place in range(points)]
    return _rate(group) * sum(seen) * steps / points


@dataclass(frozen=True)
class Forecast:
    """
    What training can put in.

    Args:
        units, of (`int`):
            Units of evidence that are right afterwards, at most, and all of them.
        unit (`str`):
            What these are, in plural.
        log2_p (`float`):
            Of so many.
        limit (`str`):
            What limits them, in words.
    """

    units: int
    of: int
    unit: str
    log2_p: float
    limit: str

    @classmethod
    def of_bits(cls, right: int, of: int, claim: Claim) -> "Forecast":
        """Of so many bits of a white-box mark, when the weights move as far as they can."""
        units, trials = secret_share(right, of, claim)
        return cls(right, of, "bits", log2_binomial_tail(units, trials), "its weights move too little")


def secret_share(right: int, of: int, claim: Claim) -> tuple[int, int]:
    """Right units and all units of the sub-keys that count: the public one proves nothing."""
    public = len(public_subkeys([claim.assignment.share]))
    trials = of * (len(claim.assignment.subkeys) - public) // len(claim.assignment.subkeys)
    return right * trials // of, trials


__all__ = ["Course", "Forecast"]
