"""A key for a model that will be marked: every method's plan, committed before the sub-keys are derived."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..backbones import as_one, backbone_record, refuse_path, refuse_unmarkable, unsaved_statistics, unwrapped
from ..configuration import WatermarkConfig
from ..keys import ModelContext, Owner, WatermarkKey, entropy, start_digest
from ..keys.schedule import expand
from .embedding import Embedding, TrainingData


logger = logging.getLogger(__name__)


def make_key(
    model: nn.Module,
    data: TrainingData,
    marks: Sequence[tuple[type[Embedding], WatermarkConfig]],
    owner: Owner,
    seed: bytes | None = None,
    processor: Any = None,
    start: str | None = None,
) -> WatermarkKey:
    """
    A fresh key whose sub-keys are shared out among `marks`; see [`~marking.plan_key`].

    Args:
        seed (`bytes`, *optional*):
            32 secret bytes; drawn anew by default.
        processor (*optional*):
            Image processor of the model: its normalisation is committed.
        start (`str`, *optional*):
            [`~keys.start_digest`] of the model, where its weights are not in memory.
    """
    refuse_path(model)
    model = unwrapped(model)
    refuse_unmarkable(model)
    for embedding, _ in marks:
        embedding.refuse_adapter(model)
    if unsaved := unsaved_statistics(model):
        logger.warning(
            "%d BatchNorms (first %s) change their statistics while the adapter trains, and the adapter does not save them: name them in "
            "`modules_to_save`, or what is saved answers otherwise than what was trained",
            len(unsaved),
            unsaved[0],
        )
    seed = entropy.draw(32) if seed is None else seed
    plans, pool = [], {}
    for embedding, config in marks:
        plan = embedding.plan(model, data, config, expand(seed, b"hfwm/v2/pool", embedding.method.encode()))
        plans.append((embedding.method, embedding.version, config.to_dict(), plan.layout, plan.subkeys))
        pool.update(plan.pool)
    if all(plan[-1] == 1 for plan in plans):
        logger.warning(*_only_one([config for _, config in marks]))
    return WatermarkKey.create(owner, plans, seed=seed, context=model_context(model, processor, start), pool=pool)


def _only_one(configs: Sequence[WatermarkConfig]) -> tuple[str, str]:
    """What the owner should know before training, because no later step can change it."""
    bits = getattr(configs[0], "bits", None) if len(configs) == 1 else None
    number = "one sub-key per method" if len(configs) > 1 else "one sub-key" + (f" of {bits} bits" if bits else "")
    return (
        "the key has only %s: it can be shown in one dispute or to one service only, and none is left to open in public (V3 of a statement). Ask for more with "
        "`subkeys`; where they do not fit, lower `bits` or use a larger model",
        number,
    )


def model_context(model: nn.Module, processor: Any = None, start: str | None = None) -> ModelContext:
    """What a key commits about the model; the normalisation is that of the image processor, if there is one."""
    mean, std = (getattr(processor, f"image_{name}", None) for name in ("mean", "std"))
    if mean is None or std is None or not getattr(processor, "do_normalize", True):
        mean = std = None
    if start is None:
        start = start_digest(as_one(model, model.state_dict(), adapted=False))
    return ModelContext.of(backbone_record(model), mean, std, start=start)
