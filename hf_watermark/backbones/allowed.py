"""
What a foreign config may say. The config of a claimant or of a key describes a network and nothing else: names of types that this
machine has installed, numbers within bounds, short words. It gives no address, path or code, and it cannot fill the machine.
"""

import copy
import inspect
import math
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks
from transformers import (
    AutoBackbone,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..serialization import InvalidInput
from .allowed_timm import shown, timm_architecture, timm_arguments
from .wrappers import register_wrapper


# Bounds: the largest nets of timm and transformers have a few hundred layers, and fewer than 10,000 modules.
MOST_ELEMENTS = 4_000_000_000
MOST_MODULES = 10_000
MOST_NESTED = 4
MOST_NUMBER, MOST_LAYERS, MOST_PIXELS = 10**6, 10**3, 2**14
MOST_ENTRIES, MOST_NAMES, MOST_LETTERS = 1000, 10**5, 500
LAYERS = re.compile(r"(.*_)?(layers?|depths?|blocks?|repeats|stages)")
PIXELS = re.compile(r"(image|img|patch|window|kernel|tile|crop|pool)_?sizes?|kernel_qkv|.*_kernel_sizes?")
# Fields that carry names of classes; the only ones in which any text may stand.
NAMES = ("id2label", "label2id", "label_names")
DTYPES = ("float32", "float16", "bfloat16", "float64")
# Understood by every config class, beside the fields that it declares.
COMMON = {"num_labels": int, "output_attentions": bool, "torch_dtype": str, "dtype": str}
# `BackboneMixin` declares these with a leading underscore.
COMMON_OF_BACKBONES = {"out_features": "list", "out_indices": "list"}
COMMON_OF_TIMM = {"num_classes": int, "label_names": "list"}
# Fields with which a config asks for foreign code, or says where something is loaded from. A record of one's own leaves them out.
NEVER_RECORDED = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config")
SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "origin_url")


def recordable(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an own model's config that goes into a key: no foreign code, and no path of the owner's machine."""
    kept = {name: value for name, value in record.items() if not name.startswith("_") and name not in NEVER_RECORDED}
    if isinstance(kept.get("pretrained_cfg"), dict):
        kept["pretrained_cfg"] = {name: value for name, value in kept["pretrained_cfg"].items() if name not in SOURCES}
    return kept


def allowed_config(record: Mapping[str, Any] | None, advice: str) -> PreTrainedConfig:
    """
    The config that a foreign record describes. What its class does not declare is left out, so it has no effect.

    Raises:
        [`~serialization.InvalidInput`]: names the field and its value; `advice` says what to do when there is no known model type.
    """
    if not isinstance(record, Mapping | None):
        raise InvalidInput(f"the backbone's config is {shown(record)}, expected names and values")
    model_type = (record or {}).get("model_type")
    if isinstance(model_type, str):
        register_wrapper(model_type)
    if (
        not isinstance(model_type, str)
        or model_type not in CONFIG_MAPPING
        or not _is_vision(CONFIG_MAPPING[model_type])
    ):
        raise InvalidInput(
            f"the backbone's config names no known model type ({shown(model_type)}) of image classifiers or segmentation models; {advice}"
        )
    config_class = CONFIG_MAPPING[model_type]
    try:
        fields = allowed_fields(config_class, record or {}, model_type)
    except InvalidInput as error:
        raise InvalidInput(f"the backbone's config is not one of `{model_type}`: {error}") from None
    try:
        return config_class.from_dict(fields)
    except Exception as error:  # a constructor of another library, with values that it may never have seen
        raise InvalidInput(f"the backbone's config is not one of `{model_type}`: {_first_lines(error)}") from None


def allowed_fields(config_class: Any, record: Mapping[str, Any], place: str, nested: int = 0) -> dict[str, Any]:
    """
    The fields of a record that a config class declares, each of a kind that only describes a network.

    Args:
        config_class (`type`):
            A config class of the installed transformers.
        place (`str`):
            Where the record stands, for messages.
        nested (`int`, *optional*, defaults to 0):
            How many configs are around this one.
    """
    if nested >= MOST_NESTED:
        raise InvalidInput(f"`{place}`: configs are nested more than {MOST_NESTED} deep")
    if (
        record.get("backbone")
        and not isinstance(record["backbone"], dict)
        and "backbone" not in declared(config_class)
    ):
        # transformers would ask the Hub for it.
        raise InvalidInput(f"`backbone` is {shown(record['backbone'])}; give `backbone_config` with a model type")
    kinds = declared(config_class)
    kept = {}
    for name, value in record.items():
        if name in kinds:
            kept[name] = _allowed(config_class, name, value, kinds[name], nested)
    return kept


def declared(config_class: Any) -> dict[str, str]:
    """Names of the fields of a config class with what it says about their kind; private ones are no fields."""
    found: dict[str, Any] = dict(COMMON)
    if is_dataclass(config_class):
        found |= {item.name: item.type for item in dataclass_fields(config_class)}
    found |= {
        name: parameter.annotation
        for name, parameter in inspect.signature(config_class.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY or parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    if hasattr(config_class, "out_features"):
        found |= COMMON_OF_BACKBONES
    if config_class.model_type == "timm_wrapper":
        found |= COMMON_OF_TIMM
    # These would be written to `config.json`, or read from it, with no model in it.
    hidden = {"self", "transformers_version", "name_or_path", *NEVER_RECORDED}
    return {
        name: kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
        for name, kind in found.items()
        if name not in hidden and not name.startswith("_")
    }


def _allowed(config_class: Any, name: str, value: Any, kind: str, nested: int) -> Any:
    """One field's value, checked."""
    ours, model_type = config_class.model_type.startswith("hf_watermark_"), config_class.model_type
    if model_type == "timm_wrapper" and name == "model_args":
        timm_arguments(value)
        _check(name, list(value.values()) if value else None)
        for argument, number in (value or {}).items():
            _check(argument, number)
        return value
    if (model_type, name) in (("timm_wrapper", "architecture"), ("timm_backbone", "backbone")):
        return timm_architecture(value, name)
    if name in NAMES:
        return _class_names(name, value)
    if name in ("dtype", "torch_dtype") and value not in (None, *DTYPES):
        raise InvalidInput(f"`{name}` is {shown(value)}, expected one of {', '.join(DTYPES)}")
    if isinstance(value, dict):
        if ours and name == "backbone":
            # Its own constructor builds it, after the same checks.
            _check_depth(value, nested)
            return value
        if ours:
            return _numbers(name, value)
        return _sub_config(config_class, name, value, nested)
    _check(name, value)
    return _floats(value) if "float" in kind and "int" not in kind else value


def _sub_config(config_class: Any, name: str, record: dict[str, Any], nested: int) -> dict[str, Any]:
    """A config inside of another one."""
    wanted = (getattr(config_class, "sub_configs", None) or {}).get(name)
    if wanted is None:
        raise InvalidInput(
            f"`{name}` is {shown(record)}, but a `{config_class.model_type}` has no config of that name"
        )
    if not issubclass(wanted, PreTrainedConfig):  # `AutoConfig`: the record says itself of which type it is
        model_type = record.get("model_type")
        if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
            raise InvalidInput(f"`{name}`: `model_type` is {shown(model_type)}, which is not known")
        wanted = CONFIG_MAPPING[model_type]
        if wanted not in AutoBackbone._model_mapping:
            raise InvalidInput(f"`{name}`: `model_type` is {shown(model_type)}, which is no backbone")
    fields = allowed_fields(wanted, record, name, nested + 1)
    return fields | ({"model_type": record["model_type"]} if "model_type" in record else {})


def _check(name: str, value: Any, deep: int = 0) -> None:
    """Numbers within bounds, short words, lists of these."""
    if isinstance(value, list | tuple) and len(value) <= MOST_ENTRIES and deep < 3:
        for entry in value:
            _check(name, entry, deep + 1)
        return
    if type(value) in (int, float):
        most = MOST_LAYERS if LAYERS.fullmatch(name) else MOST_PIXELS if PIXELS.fullmatch(name) else MOST_NUMBER
        if math.isfinite(value) and abs(value) <= (most if type(value) is int else 1e9):
            return
        raise InvalidInput(f"`{name}` is {shown(value)}, expected a number up to {most}")
    if isinstance(value, str) and len(value) <= MOST_LETTERS and not re.search(r"[/\\:\0]", value):
        return
    if value is not None and type(value) is not bool:
        raise InvalidInput(
            f"`{name}` is {shown(value)}, expected a number, a short word that is no address or path, or a list of these"
        )


def _class_names(name: str, value: Any) -> Any:
    """Names of classes and their numbers: any text, because nothing but a reader looks at it."""
    if value is None:
        return None
    entries = list(value) + list(value.values()) if isinstance(value, dict) else value
    wanted = list if name == "label_names" else dict
    if (
        not isinstance(value, wanted)
        or len(value) > MOST_NAMES
        or any(type(item) not in (str, int) for item in entries)
    ):
        raise InvalidInput(f"`{name}` is {shown(value)}, expected at most {MOST_NAMES} names of classes")
    return value


def _numbers(name: str, value: dict[str, Any]) -> dict[str, Any]:
    if len(value) > MOST_NAMES or any(type(number) not in (int, float) for number in value.values()):
        raise InvalidInput(f"`{name}` is {shown(value)}, expected names and numbers")
    return value


def _check_depth(record: Any, nested: int) -> None:
    """A wrapper around a wrapper around a wrapper ... ends somewhere."""
    inner = record
    while isinstance(inner, dict) and isinstance(inner.get("backbone"), dict):
        inner, nested = inner["backbone"], nested + 1
        if nested >= MOST_NESTED:
            raise InvalidInput(f"`backbone`: configs are nested more than {MOST_NESTED} deep")


def _floats(value: Any) -> Any:
    """Canonical JSON, in which keys are stored, writes 2.0 as 2."""
    if isinstance(value, list):
        return [_floats(entry) for entry in value]
    return float(value) if type(value) is int else value


def _is_vision(config_class: Any) -> bool:
    return any(
        config_class in auto._model_mapping
        for auto in (AutoModelForImageClassification, AutoModelForSemanticSegmentation)
    )


def refuse_oversized(model_class: Any, config: PreTrainedConfig) -> None:
    """
    Builds the model without any memory for its weights, and stops as soon as it is larger than any honest one.

    Raises:
        [`~serialization.InvalidInput`]: when it is too large, or cannot be built at all.
    """
    once = f"{model_class.__qualname__} {config.to_json_string(use_diff=False)}"
    if once in _FITTING:
        return
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), _counted():
            model_class(copy.deepcopy(config))
    except InvalidInput:
        raise
    except Exception as error:  # a constructor of another library, with values that it may never have seen
        raise InvalidInput(
            f"no `{config.model_type}` can be built from the backbone's config: {_first_lines(error)}"
        ) from None
    if len(_FITTING) >= MOST_ENTRIES:
        _FITTING.clear()
    _FITTING.add(once)


# What was built already: a verdict builds one config several times.
_FITTING: set[str] = set()


@contextmanager
def _counted() -> Iterator[None]:
    """Counts what this thread puts into modules."""
    own, seen = threading.get_ident(), {"elements": 0, "modules": 0}

    def count(kind: str, more: int, most: int) -> None:
        if threading.get_ident() == own:
            seen[kind] += more
            if seen[kind] > most:
                raise InvalidInput(f"the backbone's config describes a model of more than {most} {kind}")

    def on_tensor(module: nn.Module, name: str, tensor: Any) -> None:
        count("elements", tensor.numel() if isinstance(tensor, torch.Tensor) else 0, MOST_ELEMENTS)

    hooks = [
        module_hooks.register_module_parameter_registration_hook(on_tensor),
        module_hooks.register_module_buffer_registration_hook(on_tensor),
        module_hooks.register_module_module_registration_hook(lambda *_: count("modules", 1, MOST_MODULES)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
