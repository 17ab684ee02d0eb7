"""What is checked before the first step, so that no training ends without its mark and without having said so."""

import logging
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..evidence import level_limit
from ..keys import NO_BEACON
from .course import Course, Forecast
from .embedding import Embedding
from .restoring import not_saved


logger = logging.getLogger(__name__)

WRAPPED = re.compile(r"(_checkpoint_wrapped_module|_orig_mod)\.")


def refuse_uncarried(embeddings: Sequence[Embedding]) -> None:
    """
    Raises:
        `ValueError`: where a mark lies in weights that do not train, or that the model leaves out of its files.
    """
    for item in embeddings:
        weights, carriers = plain_names(item.model), item.carriers
        frozen = [name for name in carriers if not weights[name].requires_grad]
        if frozen:
            training = [role for name, role in carriers.items() if name not in frozen]
            others = (
                f"name those that train: `layers={training}`"
                if training
                else "mark the finished model with `mark_model`"
            )
            raise ValueError(
                f"{len(frozen)} of {len(carriers)} carriers of `{item.method}` do not train (`{frozen[0]}` has `requires_grad=False`): unfreeze "
                f"them, or {others}"
            )
        if not any(weight.requires_grad for weight in weights.values()):
            raise ValueError(
                f"no weight of the model trains, so `{item.method}` cannot teach it anything: unfreeze some"
            )
        left_out = sorted(carriers.keys() & not_saved(item.model))
        if left_out:
            raise ValueError(
                f"{len(left_out)} of {len(carriers)} carriers of `{item.method}` are not saved with the model (`{left_out[0]}`; see its "
                "`_keys_to_ignore_on_save`): name others with `layers`"
            )


def plain_names(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by the names that they had before something was put around their layers."""
    return {WRAPPED.sub("", name): weight for name, weight in model.named_parameters()}


def before_first_step(trainer: Any, embeddings: Sequence[Embedding]) -> None:
    """
    Called when optimizer, schedule and number of steps are known.

    Raises:
        `ValueError`: where the mark cannot get in: as [`refuse_uncarried`], or when the optimizer does not hold its carriers or stands still.
    """
    refuse_uncarried(embeddings)
    course = Course.of(trainer)
    for item in embeddings:
        weights, carriers = plain_names(item.model), item.carriers
        missing = [name for name in carriers if id(weights[name]) not in course.held]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(carriers)} carriers of `{item.method}` are not in the optimizer (`{missing[0]}`): give it all parameters "
                "of the model, as it is when the trainer was made, or leave out `optimizers`"
            )
    if not course.steps:  # the end of a run that was complete already
        return
    loaded = getattr(trainer.callback_handler.train_dataloader, "dataset", None)
    if trainer.key.pool and sized(loaded) > sized(trainer.train_dataset) > 0:
        logger.warning(
            "the dataloader has %d rows, `trainer.train_dataset` %d: rows that were set aside for the key's questions are trained on, so the model "
            "knows them and the key will seem stronger than it is. Load `trainer.train_dataset`",
            sized(loaded),
            sized(trainer.train_dataset),
        )
    limit = level_limit(trainer.key.beacon != NO_BEACON)
    forecasts = [(item, item.forecast(course)) for item in embeddings]
    short = [(item, forecast) for item, forecast in forecasts if forecast is not None and forecast.log2_p > limit]
    there = trainer.verify().by_method if short else {}  # it may be there already
    said = [
        _said(item, forecast, course, limit)
        for item, forecast in short
        if item.method not in there or there[item.method].log2_p > limit
    ]
    if said and course.rates == 0:
        raise ValueError("; ".join(said))
    for line in said:
        logger.warning("%s", line)


def sized(data: Any) -> int:
    """Rows of a data set; 0 where it does not say."""
    return len(data) if hasattr(data, "__len__") else 0


def _said(item: Embedding, forecast: Forecast, course: Course, limit: float) -> str:
    return (
        f"`{item.method}` will hardly be readable after this training: {forecast.limit}, so at most {forecast.units} of {forecast.of} {forecast.unit} "
        f"can be right (log2 p = {round(forecast.log2_p)}, a claim asks for {limit:.0f}). There are {course.steps} steps of {course.batch} images, and "
        f"their learning rates add up to {course.rates:.2g}: {forecast.advice}"
    )


__all__ = ["before_first_step", "refuse_uncarried"]
