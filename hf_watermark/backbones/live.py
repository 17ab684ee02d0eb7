"""Live models as somebody hands them over: in wrappers, in any float type, with any form of output."""

import os
import sys
from typing import Any

import torch
from torch import nn

from ..serialization import InvalidInput
from .folding import evaluation_mode, logits_of
from .formats import FLOATS


def unwrapped(module: nn.Module) -> nn.Module:
    """
    The model inside of DataParallel, DistributedDataParallel, `torch.compile` and `PeftModel`, however often these are put around it. An adapter
    stays in it.
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = module.module if isinstance(module, wrappers) else getattr(module, "_orig_mod", None)
        inner = _adapted(module) if inner is None else inner
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _adapted(module: nn.Module) -> nn.Module | None:
    # Where nobody has imported peft, there is no model of its.
    peft: Any = sys.modules.get("peft")
    if peft is None or not isinstance(module, peft.PeftModel) or module.active_peft_config.is_prompt_learning:
        return None
    return module.get_base_model()


def second_names(model: nn.Module) -> set[str]:
    """Names of parameters that are there under an earlier name: layers that share their weights."""
    first = {name for name, _ in model.named_parameters()}
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - first


def refuse_path(model: object) -> None:
    """Raises [`~serialization.InvalidInput`] where a model was given by its name or path, as some pipelines take it."""
    if isinstance(model, str | os.PathLike):
        name = str(model)[:200]
        raise InvalidInput(
            f"`model` is {name!r}: load it first, for example with `AutoModelForImageClassification.from_pretrained({name!r})`"
        )


def answers_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """
    Logits `[n, classes]` (float32) for images `[n, channels, height, width]`, in evaluation mode and in the model's own type and place.

    Raises:
        [`~serialization.InvalidInput`]: when what it returns holds no logits, or when it takes no images of this shape.
    """
    # Codes of quantised layers have types in which no image can be given.
    kinds = [item for item in [*model.parameters(), *model.buffers()] if item.dtype in FLOATS]
    if kinds:
        images = images.to(device=kinds[0].device, dtype=kinds[0].dtype)
    try:
        with torch.no_grad(), evaluation_mode(model):
            return logits_of(model(images)).float()
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        if isinstance(error, InvalidInput):
            raise
        # A net says so in many ways: other channels, another size, too small for its strides.
        raise InvalidInput(
            f"the suspect cannot be asked images of shape {tuple(images.shape[1:])}: {' '.join(str(error).split())[:300]}"
        ) from None
