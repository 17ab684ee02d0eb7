"""
What a model's config says, and the class that it asks for: timm modules behind the transformers face, and records of an architecture.

The one room of backbones that imports the models of transformers; whoever only reads weights does not come here.
"""

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from ..serialization import InvalidInput
from .allowed import allowed_config, recordable, refuse_oversized


def wrap_timm(
    module: nn.Module, architecture: str, num_labels: int, **model_args: Any
) -> TimmWrapperForImageClassification:
    """
    Puts a plain timm module behind [`~transformers.TimmWrapperForImageClassification`], keeping timm's own initialisation.

    The wrapper's constructor re-initialises every layer (normal, std 0.02), so the module is put in place afterwards.

    Args:
        module (`nn.Module`):
            A timm classifier.
        architecture (`str`):
            Its timm name, for `config.json`.
        num_labels (`int`):
            Number of classes of its head.
        model_args (*optional*):
            Keyword arguments that `timm.create_model` needs to build the same module again.

    Example:

    ```python
    >>> import timm

    >>> model = wrap_timm(timm.create_model("resnet10t", num_classes=10), "resnet10t", num_labels=10)
    >>> model.config.num_labels
    10
    ```
    """
    fields: dict[str, Any] = {"architecture": architecture, "num_labels": num_labels, "model_args": model_args or None}
    config = TimmWrapperConfig(**fields)
    wrapper = TimmWrapperForImageClassification(config)
    wrapper.timm_model = module
    return wrapper


def as_pretrained(model: Any) -> Any:
    """
    A module of timm behind [`wrap_timm`], as the Trainer needs it; anything else as it is.

    Raises:
        [`~serialization.InvalidInput`]: for a timm module that cannot be built again from its name and number of classes, and for one of torchvision.
    """
    if not isinstance(model, nn.Module) or "pixel_values" in inspect.signature(model.forward).parameters:
        return model
    libraries = {base.__module__.split(".")[0] for base in type(model).__mro__}
    if "timm" in libraries:
        return _wrapped_as_built(model)
    if "torchvision" in libraries:
        raise InvalidInput(
            f"`model` is a {type(model).__name__} of torchvision, which takes no `pixel_values` and `labels`; give the model of timm of that name: "
            "`wrap_timm(timm.create_model(name, pretrained=True, num_classes=n), name, n)`"
        )
    return model


def _wrapped_as_built(module: Any) -> TimmWrapperForImageClassification:
    import timm

    name: str = (getattr(module, "pretrained_cfg", None) or {}).get("architecture") or ""
    classes: int = getattr(module, "num_classes", 0)
    kernel = next((tensor for tensor in module.parameters() if tensor.ndim == 4), None)
    for model_args in ({}, {} if kernel is None else {"in_chans": kernel.shape[1]}):
        if not classes or not timm.is_model(name):
            break
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            twin = timm.create_model(name, num_classes=classes, **model_args)
        if _built(twin) == _built(module):
            with torch.random.fork_rng(devices=[]):
                return wrap_timm(module, name, classes, **model_args)
    raise InvalidInput(
        f"`model` is a {type(module).__name__} of timm with other layers than `timm.create_model({name!r}, num_classes={classes})` makes; say how it "
        "was built: `wrap_timm(model, architecture, num_labels, **arguments_of_create_model)`"
    )


def _built(module: nn.Module) -> tuple[dict[str, type], dict[str, torch.Size]]:
    """Layers and shapes."""
    return {name: type(part) for name, part in module.named_modules()}, {
        name: item.shape for name, item in module.state_dict().items()
    }


def backbone_record(model: nn.Module) -> dict[str, Any]:
    """The model's config as plain JSON, kept in the key so that a suspect's tensors can be run later. Empty for bare modules."""
    if not isinstance(model, PreTrainedModel):
        return {}
    record = recordable(json.loads(model.config.to_json_string(use_diff=False)))
    # One config may belong to a classifier and to a segmentation model.
    return record | {"architectures": [type(model).__name__]}


def backbone_config(record: Mapping[str, Any] | None, advice: str) -> Any:
    """
    The config that a record describes, if it describes a network of bounded size and nothing else (see `allowed.py`).

    Raises:
        [`~serialization.InvalidInput`]: for a model type that the installed transformers does not know, a field that says more than a network
            has, or a model that no machine could hold; `advice` says what to do.
    """
    config = allowed_config(record, advice)
    refuse_oversized(model_class_of(config), config)
    return config


def model_class_of(config: PreTrainedConfig) -> Any:
    """The class of the model that a config asks for, which is always one of the installed transformers or of this package."""
    found: Any = auto_class(config)._model_mapping[type(config)]
    if not isinstance(found, tuple):
        return found
    # Of some types there are several classifiers, such as one with a distillation head.
    named = getattr(config, "architectures", None) or []
    return next((one for one in found if one.__name__ in named), found[0])


def auto_class(config: PreTrainedConfig) -> Any:
    """The Auto class that a config's `architectures` asks for: semantic segmentation, or image classification where there is a choice."""
    named = getattr(config, "architectures", None) or []
    segmentation: Any = AutoModelForSemanticSegmentation._model_mapping.get(type(config), None)
    classifies = type(config) in AutoModelForImageClassification._model_mapping
    if segmentation is not None and (segmentation.__name__ in named or not classifies):
        return AutoModelForSemanticSegmentation
    if not classifies:
        raise InvalidInput(
            f"a {config.model_type!r} model neither classifies images nor segments them; give one that does"
        )
    return AutoModelForImageClassification
