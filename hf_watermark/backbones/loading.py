"""Build and fill vision backbones: timm modules behind the transformers face, and suspects on the owner's architecture."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..serialization import InvalidInput


# Fields of a config that make transformers fetch or run foreign code.
UNSAFE_FIELDS = ("auto_map", "_attn_implementation", "attn_implementation", "_experts_implementation")


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
    """
    fields: dict[str, Any] = {"architecture": architecture, "num_labels": num_labels, "model_args": model_args or None}
    config = TimmWrapperConfig(**fields)
    wrapper = TimmWrapperForImageClassification(config)
    wrapper.timm_model = module
    return wrapper


def full_parameter(parameter: torch.Tensor) -> torch.Tensor:
    """The whole tensor of a parameter, gathered when it is an FSDP2 shard (`DTensor`)."""
    if not isinstance(parameter, torch.distributed.tensor.DTensor):
        return parameter
    # Processes may draw different noise and triggers, so their gradients are averaged, as those of the forward pass are.
    return parameter.full_tensor(
        grad_placements=[torch.distributed.tensor.Partial("avg")] * parameter.device_mesh.ndim
    )


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 keeps only a part of each parameter in this process."""
    return any(isinstance(parameter, torch.distributed.tensor.DTensor) for parameter in model.parameters())


def live_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters of a live model by name, gathered; gradients flow through them."""
    return {name: full_parameter(parameter) for name, parameter in model.named_parameters()}


def backbone_record(model: nn.Module) -> dict[str, Any]:
    """The model's config as plain JSON, kept in the key so that a suspect's tensors can be run later. Empty for bare modules."""
    if not isinstance(model, PreTrainedModel):
        return {}
    record = json.loads(model.config.to_json_string(use_diff=False))
    # One config may belong to a classifier and to a segmentation model.
    record["architectures"] = [type(model).__name__]
    # The name is where the owner's model was loaded from: a path of his machine.
    return {field: value for field, value in record.items() if field not in (*UNSAFE_FIELDS, "_name_or_path")}


def backbone_config(record: Mapping[str, Any] | None, advice: str) -> Any:
    """
    The config that a record describes, without the fields that would fetch or run foreign code.

    Raises:
        [`~serialization.InvalidInput`]: when it names no model type of the installed transformers; `advice` says what to do.
    """
    fields = {field: value for field, value in (record or {}).items() if field not in UNSAFE_FIELDS}
    model_type = fields.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise InvalidInput(f"the backbone's config names no known model type ({model_type!r}); {advice}")
    config_class = CONFIG_MAPPING[model_type]
    usual = config_class()
    for field, value in fields.items():
        # Canonical JSON, in which keys are stored, writes 2.0 as 2.
        if type(value) is int and isinstance(getattr(usual, field, None), float):
            fields[field] = float(value)
    try:
        return config_class.from_dict(fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InvalidInput(f"the backbone's config is not one of `{model_type}`: {error}") from None


def auto_class(config: PreTrainedConfig) -> Any:
    """The Auto class that a config's `architectures` asks for: semantic segmentation, or image classification in all other cases."""
    named = getattr(config, "architectures", None) or []
    segmentation: Any = AutoModelForSemanticSegmentation._model_mapping.get(type(config), None)
    if segmentation is not None and segmentation.__name__ in named:
        return AutoModelForSemanticSegmentation
    return AutoModelForImageClassification
