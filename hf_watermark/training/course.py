"""
How far a training can move a model, and how much of a mark it can put in at most.

Bounds and not predictions, with constants that lie above the runs that were measured (`examples/benchmarks/settings.py`): a warning should be
no false alarm, and a hopeless run is told before it begins. A run near the border may still be lost without a warning.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..backbones import full_parameter
from ..keys import Claim, public_subkeys
from ..statistics import log2_binomial_tail


# Points at which a schedule of many steps is looked at.
POINTS = 1000
# Of a black-box mark that a linear layer can learn, measured on digits.
BY_HEAD = 0.25
# Nets without kernels are taught so many times as often: a tiny ViT that is trained from the beginning.
SLOWER = 10
# Learning rates that a weight may move by in a step, where it is not one: Adafactor divides by the size of a whole matrix of gradients,
# RMSprop by an average that begins at zero.
STRIDES = {"Adafactor": 3.0, "RMSprop": 5.0}


@dataclass(frozen=True)
class Course:
    """
    The optimizer steps of a run; of one that is resumed, from its beginning.

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
        stride (`float`):
            Learning rates per step, where there is no momentum.
        held (`frozenset[int]`):
            The `id` of each weight in the optimizer; empty for all that train.
    """

    steps: int
    rates: float
    batch: int
    momentum: float | None = None
    clip: float = math.inf
    stride: float = 1.0
    held: frozenset[int] = frozenset()

    @classmethod
    def of(cls, trainer: Any) -> "Course":
        """Of a [`~transformers.Trainer`] whose training begins."""
        args, steps = trainer.args, int(trainer.state.max_steps)
        micro = trainer._train_batch_size * args.world_size
        optimizer: Any = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        group = max(optimizer.param_groups, key=_rate)
        plain = type(optimizer).__name__ in ("SGD", "ASGD")
        return cls(
            steps,
            _sum_of_rates(trainer.lr_scheduler, group, optimizer.param_groups.index(group), steps),
            micro * args.gradient_accumulation_steps,
            float(group.get("momentum", 0.0)) if plain else None,
            args.max_grad_norm or math.inf,
            STRIDES.get(type(optimizer).__name__, 1.0),
            frozenset(id(weight) for group in optimizer.param_groups for weight in group["params"]),
        )

    def reach(self, gradient: Any, norm: float = 0.0) -> Any:
        """
        The farthest that a weight gets, in its own units, while its gradient is `gradient` (a number or a tensor) and that of all weights
        together has the norm `norm`. Other losses only shorten the way: they pull it elsewhere, and take their share of the clipped norm.
        """
        if self.momentum is None:
            return self.stride * self.rates
        return self.rates * gradient * min(1.0, self.clip / max(norm, 1e-12)) / max(1 - self.momentum, 1e-3)

    def trained(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters that train."""
        return [
            weight
            for weight in model.parameters()
            if weight.requires_grad and (not self.held or id(weight) in self.held)
        ]

    def only_head(self, model: nn.Module) -> bool:
        """Whether every weight that trains belongs to the classes."""
        classes = getattr(getattr(model, "config", None), "num_labels", None)
        return all(len(weight) == classes for weight in self.trained(model) if weight.ndim)

    def moves(self, model: nn.Module) -> float:
        """The farthest that the weight matrices of a model get together, as a multiple of their own norm."""
        weights = [weight for weight in self.trained(model) if weight.ndim > 1]
        squares = [float(full_parameter(weight).detach().float().square().sum()) for weight in weights]
        norm = max(math.sqrt(sum(squares)), 1e-12)
        if self.momentum is None:
            return self.stride * self.rates * math.sqrt(sum(weight.numel() for weight in weights)) / norm
        # Where nothing clips it, a gradient of the norm 1 is taken for a large one.
        return self.rates * min(self.clip, 1.0) / max(1 - self.momentum, 1e-3) / norm


def _rate(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))


def _sum_of_rates(scheduler: Any, group: dict[str, Any], number: int, steps: int) -> float:
    """Of the schedules of transformers exactly (or at 1000 points); of another one as if the rate stayed as it is set."""
    scheduler = getattr(scheduler, "scheduler", scheduler)
    shares = getattr(scheduler, "lr_lambdas", None)
    if not shares or not steps:
        return _rate(group) * steps
    points = min(steps, POINTS)
    seen = [float(shares[number](place * steps // points)) for place in range(points)]
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
        advice (`str`):
            What to change.
    """

    units: int
    of: int
    unit: str
    log2_p: float
    limit: str
    advice: str = "raise `learning_rate` or `num_train_epochs` (`max_steps`)"

    @classmethod
    def of_bits(cls, right: int, of: int, claim: Claim) -> "Forecast":
        """Of so many bits of a white-box mark, when the weights move as far as they can."""
        units, trials = secret_share(right, of, claim)
        return cls(right, of, "bits", log2_binomial_tail(units, trials), "its weights move too little")

    @classmethod
    def of_answers(
        cls,
        course: Course,
        model: nn.Module,
        claim: Claim,
        units: int,
        chance: float,
        shown: float,
        lessons: "Lessons",
    ) -> "Forecast":
        """
        Of a black-box mark.

        Args:
            units (`int`):
                Of all sub-keys.
            chance (`float`):
                Of a unit that was not learned.
            shown (`float`):
                How often each one is taught in this run.
            lessons ([`Lessons`]):
                What the method takes.
        """
        kernels = sum(weight.ndim == 4 and weight.shape[-1] > 1 for weight in model.parameters())
        enough = lessons.enough * (1 if kernels > 1 else SLOWER)
        often, far = shown / enough, lessons.pace * math.sqrt(course.moves(model))
        learned = min(1.0, often, far)
        limit = f"each is taught {shown:.3g} times" if often <= far else "the weights move too little"
        said = [limit]
        if course.only_head(model):
            learned, said = min(learned, BY_HEAD), ["only the head trains", "unfreeze more of the model"]
        right = round(units * (learned + (1 - learned) * chance))
        log2_p = log2_binomial_tail(*secret_share(right, units, claim), chance)
        return cls(right, units, lessons.unit, log2_p, *said)


@dataclass(frozen=True)
class Lessons:
    """
    What a black-box mark takes, from runs that were measured: the share of it that is learned is taken to be shown / enough or, where that is less,
    pace sqrt(m), m being how far the weights can move against their own norm. Runs scatter around both.

    Args:
        unit (`str`):
            What is taught, in plural.
        enough (`float`):
            How often one is taught until it may be learned for sure.
        pace (`float`):
            The constant of the way.
    """

    unit: str
    enough: float
    pace: float


def secret_share(right: int, of: int, claim: Claim) -> tuple[int, int]:
    """Right units and all units of the sub-keys that count: the public one proves nothing."""
    public = len(public_subkeys([claim.assignment.share]))
    trials = of * (len(claim.assignment.subkeys) - public) // len(claim.assignment.subkeys)
    return right * trials // of, trials


__all__ = ["Course", "Forecast", "Lessons"]
