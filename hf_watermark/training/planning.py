"""A key for a model that will be marked: every method's plan, committed before the sub-keys are derived."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..backbones import backbone_record
from ..configuration import WatermarkConfig
from ..keys import ModelContext, Owner, WatermarkKey, entropy, start_digest
from ..keys.schedule import expand
from .embedding import Embedding, TrainingData


def make_key(
    model: nn.Module,
    data: TrainingData,
    marks: Sequence[tuple[type[Embedding], WatermarkConfig]],
    owner: Owner,
    seed: bytes | None = None,
    processor: Any = None,
) -> WatermarkKey:
    """
    A fresh key whose sub-keys are shared out among `marks`; see [`~marking.plan_key`].

    Args:
        seed (`bytes`, *optional*):
            32 secret bytes; drawn anew by default.
        processor (*optional*):
            Image processor of the model: its normalisation is committed.
    """
    seed = entropy.draw(32) if seed is None else seed
    plans, pool = [], {}
    for embedding, config in marks:
        plan = embedding.plan(model, data, config, expand(seed, b"hfwm/v2/pool", embedding.method.encode()))
        plans.append((embedding.method, embedding.version, config.to_dict(), plan.layout, plan.subkeys))
        pool.update(plan.pool)
    return WatermarkKey.create(owner, plans, seed=seed, context=model_context(model, processor), pool=pool)


def model_context(model: nn.Module, processor: Any = None) -> ModelContext:
    """What a key commits about the model; the normalisation is that of the image processor, if there is one."""
    mean, std = (getattr(processor, f"image_{name}", None) for name in ("mean", "std"))
    if mean is None or std is None or not getattr(processor, "do_normalize", True):
        mean = std = None
    return ModelContext.of(backbone_record(model), mean, std, start=start_digest(model.state_dict()))
