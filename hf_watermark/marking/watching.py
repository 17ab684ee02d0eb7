"""What a loop did with a mark: without it, a mark that was never trained in would be noticed only when it cannot be read."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..backbones import is_sharded
from ..serialization import InvalidInput
from ..training.embedding import Embedding
from ..training.marks import carrier_parameters, process_count


# What each call of a loop looks like.
ADVICE = {
    "extend": "train on `batch = watermark.extend(batch)`",
    "loss": "add `watermark.loss()`, or `watermark.loss(batch, outputs)`, to the loss",
    "around_step": "run forward and backward pass as `watermark.around_step(step)`",
    "after_update": "call `watermark.watch(optimizer)` before the loop",
    "before_epoch": "call `watermark.before_epoch(epoch, epochs)` before every epoch",
}


class Loop:
    """
    What a loop has called so far.

    Args:
        embeddings (`Sequence[Embedding]`):
            Of the methods that mark.
        steps (`int`):
            Optimizer steps that were planned; 0 where nobody said so.

    Attributes:
        called (`set[str]`): Of `ADVICE`.
        step, micro_step (`int`): Optimizer steps, and batches since the last one.
        weight (`torch.Tensor`, *optional*): How often the mark's own loss counted in the present optimizer step, as its gradient says.
        weighed (`bool`): It was seen once.
        twice (`bool`): A method ran several passes over a batch in this step, so `weight` says nothing.
        given, trained (`bool`): The mark's own loss was given to the loop, and a backward pass went through it.
        looked (`bool`): The first optimizer step was looked at.
    """

    def __init__(self, embeddings: Sequence[Embedding], steps: int):
        self.embeddings, self.steps = embeddings, steps
        self.called: set[str] = set()
        self.step = self.micro_step = 0
        self.weight: torch.Tensor | None = None
        self.weighed = self.twice = self.given = self.trained = self.looked = False
        self.optimizers: list[Any] = []
        self._stepped: list[Any] = []  # since the last step was counted
        self.scaler: Any = None

    def weigh(self, loss: torch.Tensor) -> None:
        """Notes how much the backward pass makes of a loss, until that was seen to be right."""
        if loss.requires_grad and not self.weighed:
            self.given = True
            loss.register_hook(self._count)

    def _count(self, gradient: torch.Tensor) -> None:
        self.trained = True
        self.weight = gradient.detach() if self.weight is None else self.weight + gradient.detach()

    def begins_a_step(self, optimizer: Any) -> bool:
        """Whether an optimizer has stepped that had already done so: two of them that take turns take one step together."""
        again = not self._stepped or any(optimizer is known for known in self._stepped)
        self._stepped = [optimizer] if again else [*self._stepped, optimizer]
        return again

    def stepped(self) -> list[str]:
        """
        Notes an optimizer step. Returns what a user should know, at the first one.

        Raises:
            [`~serialization.InvalidInput`]: when the optimizers do not hold the weights that carry a mark.
        """
        self.step, self.micro_step = self.step + 1, 0
        found = []
        if not self.looked:
            refuse_left_out(self.embeddings, self.optimizers)
            found, self.looked = self.problems(), True
        if self.weight is not None and not self.twice and not self.weighed:
            self.weighed = True
            scale = float(self.scaler.get_scale()) if self.scaler is not None else 1.0
            weight = float(self.weight) / scale
            if abs(weight - 1) > 0.01:
                found.append(
                    f"the mark's loss counted {weight:g} times in an optimizer step, and should count once: where gradients of several "
                    "batches are summed, divide the loss by their number; a gradient scaler is given as `watch(optimizer, scaler)`"
                )
        self.weight, self.twice = None, False
        return found

    def problems(self) -> list[str]:
        """What the loop has not done, by method."""
        found = []
        for item in self.embeddings:
            missing = [name for name in ADVICE if name in item.required_calls() - self.called]
            if missing:
                found.append(
                    f"`{item.method}` was not marked as it should be: {'; '.join(ADVICE[name] for name in missing)}"
                )
        if self.given and not self.trained:
            found.append("no backward pass went through `watermark.loss()`: add it to the loss")
        return found

    def unfinished(self) -> list[str]:
        """Which methods had a share of the planned steps in mind that were not taken."""
        methods = [f"`{item.method}`" for item in self.embeddings if item.counts_on_steps]
        if not methods or self.step >= 0.9 * self.steps:  # `steps` may be about right
            return []
        return [
            f"{self.step} of the planned `steps={self.steps}` were taken, on which {' and '.join(methods)} counted"
        ]


def on_step(optimizer: Any, then: Callable[[], None]) -> None:
    """Calls `then` behind every step of an optimizer that changed weights."""
    if getattr(type(optimizer).step, "hooked", False):
        optimizer.register_step_post_hook(lambda *_: then())
        return
    # Such as timm's Lookahead, which leaves out what makes an optimizer of torch call hooks.
    inner = optimizer.step

    def step(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        then()
        return result

    optimizer.step = step


def innermost(optimizer: Any) -> Any:
    """
    The optimizer in wrappers such as those of Accelerate and Lightning, which skip some steps.

    Raises:
        [`~serialization.InvalidInput`]: when it has no `step`, or is of DeepSpeed.
    """
    while True:
        if "deepspeed" in f"{type(optimizer).__module__}.{type(optimizer).__name__}".lower():
            raise InvalidInput(HIDDEN)
        inner = getattr(optimizer, "optimizer", None)
        if not hasattr(inner, "step"):
            break
        optimizer = inner
    if not callable(getattr(optimizer, "step", None)):
        raise InvalidInput(f"`optimizer` is a {type(optimizer).__name__}: give the optimizer that trains the model")
    return optimizer


HIDDEN = "DeepSpeed and FSDP1 keep the weights where a mark cannot be put in; use DDP or FSDP2 (`fully_shard`)"


def refuse_hidden(model: nn.Module) -> None:
    """Raises [`~serialization.InvalidInput`] where a wrapper keeps the weights for itself."""
    if isinstance(model, FullyShardedDataParallel) or type(model).__module__.startswith("deepspeed"):
        raise InvalidInput(HIDDEN)


def refuse_left_out(embeddings: Sequence[Embedding], optimizers: Sequence[Any]) -> None:
    """Raises [`~serialization.InvalidInput`] where no optimizer holds the carriers, because another model or a part of it trains."""
    held = {id(weight) for one in optimizers for group in one.param_groups for weight in group["params"]}
    for item in embeddings:
        weights = carrier_parameters(item)
        missing = [weight for weight in weights if id(weight) not in held]
        if missing and (len(missing) == len(weights) or item.carriers):
            raise InvalidInput(
                f"{len(missing)} of {len(weights)} weights that `{item.method}` marks are in no optimizer that is watched, so their mark "
                "would not be trained: give `Watermark` the model that trains, and watch every optimizer of it"
            )


SEPARATE = (
    "the processes did not know of each other yet, so each has a key of its own: make the `Watermark` behind `Accelerator()` or "
    "`torch.distributed.init_process_group`, or give all of them the same `key=`"
)


def refuse_too_late(model: nn.Module) -> None:
    """Raises [`~serialization.InvalidInput`] where a key cannot be drawn for all processes."""
    if is_sharded(model):
        raise InvalidInput(
            "the model is sharded already: make the `Watermark` before `fully_shard` or `accelerator.prepare`"
        )
    if process_count() == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InvalidInput(SEPARATE)
