"""
Live models with a LoRA adapter of `peft` in them: what the adapter changes, and what the model is with it and without it.

`peft` is never imported here: where nobody has imported it, there are no adapters.
"""

import copy
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..serialization import InvalidInput, UnreadableFormat
from ..serialization.tensors import NamedTensors
from .adapters import LoraSettings, with_magnitude
from .carriers import Carrier
from .families import Shape
from .sharding import full_parameter


def adapter_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that an adapter of any kind has put around others, by the name that the other one has in the base."""
    kinds: Any = sys.modules.get("peft.tuners.tuners_utils")
    if kinds is None:
        return {}
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds.BaseTunerLayer)}


def saved_whole(model: nn.Module) -> dict[str, Any]:
    """The layers of `modules_to_save`, each with its original beside it."""
    kinds: Any = sys.modules.get("peft.utils.other")
    if kinds is None:
        return {}
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds.ModulesToSaveWrapper)}


def refuse_unmarkable(model: nn.Module) -> None:
    """
    Raises:
        [`~serialization.InvalidInput`]: for an adapter that no mark can be put into, or that could not be read again from what is saved.
    """
    configs: Any = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not configs:
        return
    if len(configs) > 1:
        raise InvalidInput(
            f"the model holds {len(configs)} adapters ({', '.join(map(str, configs))}): a mark goes into one; delete the others with "
            "`delete_adapter`, or merge them first"
        )
    [config] = configs.values()
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise InvalidInput(
            f"the adapter is of type {kind}: only the low-rank changes of LORA adapters (DoRA included) can be marked; use LoraConfig"
        )
    try:
        LoraSettings.of(json.loads(json.dumps(config.to_dict(), default=list)), "the LoraConfig")
    except UnreadableFormat as error:
        raise InvalidInput(f"what is saved of this adapter could not be read again: {error}; leave that out") from None
    for name, layer in adapter_layers(model).items():
        if type(layer.get_base_layer()) not in (nn.Linear, nn.Conv2d) or getattr(layer, "fan_in_fan_out", False):
            base = type(layer.get_base_layer()).__name__
            raise InvalidInput(
                f"the adapter changes {name!r}, a {base}: only Linear and Conv2d layers can be read back; leave it out of `target_modules`"
            )
        if getattr(layer.get_base_layer(), "groups", 1) > 1:
            raise InvalidInput(
                f"the adapter changes {name!r}, a convolution in groups, which `peft` cannot merge; leave it out of `target_modules`"
            )
        if layer.merged:
            raise InvalidInput("the adapter is merged into the weights; call `unmerge_adapter` before you train it")
        if not all(parameter.requires_grad for parameter in _factors(layer)):
            raise InvalidInput(
                f"the factors of {name!r} do not train; load the adapter with `is_trainable=True`, or make a new one"
            )


def unsaved_statistics(model: nn.Module) -> list[str]:
    """BatchNorms of the base whose statistics change while the adapter trains, and are not saved with it."""
    if not adapter_layers(model):
        return []
    kept = tuple(f"{name}." for name in saved_whole(model))
    norms = (name for name, layer in model.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
    return [name for name in norms if not name.startswith(kept)]


def changes(model: nn.Module) -> dict[str, "Change"]:
    """What the LoRA adapter of a live model changes, by the name of the weight in the base; empty where there is none, or one that is not known."""
    layers = adapter_layers(model)
    known = all(_is_known(layer) for layer in layers.values())
    return {f"{name}.weight": Change(layer) for name, layer in layers.items()} if known else {}


def _is_known(layer: Any) -> bool:
    base, variants = layer.get_base_layer(), getattr(layer, "lora_variant", {}).values()
    plain = (
        type(base) in (nn.Linear, nn.Conv2d)
        and getattr(base, "groups", 1) == 1
        and not getattr(layer, "fan_in_fan_out", False)
    )
    return bool(_factors(layer)) and plain and all(type(variant).__name__.startswith("Dora") for variant in variants)


class Change:
    """
    One change `scaling * B A` of a live adapter.

    Attributes:
        shape (`tuple[int, ...]`): That of the weight in the base.
        rank (`int`): Number of rows of A.
    """

    def __init__(self, layer: Any):
        self.layer = layer
        self.shape: Shape = tuple(layer.get_base_layer().weight.shape)
        self.rank = len(_factors(layer)[0])

    def base(self) -> torch.Tensor:
        """The weight that is changed."""
        return full_parameter(self.layer.get_base_layer().weight)

    def __call__(self) -> torch.Tensor:
        """The change as it is now, in the shape of the weight. Differentiable in the factors."""
        a, b = (full_parameter(factor).flatten(1) for factor in _factors(self.layer))
        return (self.layer.scaling[self.layer.active_adapters[0]] * (b @ a)).reshape(self.shape)

    def merged(self) -> torch.Tensor:
        """The weight with its change, in whatever way the adapter scales its rows."""
        if self.layer.merged:
            return self.base()
        magnitude = self.layer.lora_magnitude_vector
        weight = self.base() + self()
        own = self.layer.active_adapters[0]
        return with_magnitude(weight, full_parameter(magnitude[own].weight)) if own in magnitude else weight


def describe_changes(model: nn.Module, layers: Iterable[str] | None = None) -> list[Carrier]:
    """
    What the adapter of a live model changes, as carriers that have the names and shapes of the base's weights.

    Args:
        layers (`Iterable[str]`, *optional*):
            Names of layers or of their weights to use instead of all.
    """
    known = {name: change.shape for name, change in changes(model).items()}
    chosen = list(known) if layers is None else [name if name in known else f"{name}.weight" for name in layers]
    for name in chosen:
        if name not in known:
            raise InvalidInput(
                f"`layers` names {name.removesuffix('.weight')!r}, which the adapter does not change; it changes {', '.join(known)[:300]}"
            )
    return [
        Carrier(name, shape[0], math.prod(shape[1:]), math.prod(shape[2:]), False, shape, name=name)
        for name, shape in ((name, known[name]) for name in chosen)
    ]


class LiveChanges(NamedTensors):
    """[`changes`] as tensors, computed when asked for."""

    def __init__(self, live: Mapping[str, Change]):
        self.live = live
        self.shapes = {name: change.shape for name, change in live.items()}

    @torch.no_grad()
    def __getitem__(self, name: str) -> torch.Tensor:
        return self.live[name]()


def as_one(model: nn.Module, tensors: Mapping[str, torch.Tensor], adapted: bool = True) -> dict[str, torch.Tensor]:
    """
    Tensors of a live model with an adapter, by the names that they have in the base; those of any other model as they are.

    Args:
        tensors (`Mapping[str, torch.Tensor]`):
            Its parameters, buffers or state.
        adapted (`bool`, *optional*, defaults to `True`):
            With the adapter; else the base without it.
    """
    layers, whole, own = adapter_layers(model), saved_whole(model), changes(model)
    if len(layers) != len(own) or not (layers or whole):
        return dict(tensors)
    found = {}
    for name, tensor in tensors.items():
        outer = next((cut for cut in _prefixes(name) if cut in layers or cut in whole), None)
        if outer is None:
            found[name] = tensor
            continue
        inner = name[len(outer) + 1 :]
        kept = _kept_by(whole[outer], adapted) if outer in whole else "base_layer."
        if inner.startswith(kept):
            place = f"{outer}.{inner.removeprefix(kept)}"
            found[place] = own[place].merged() if adapted and place in own else tensor
    return found


def live_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters of a live model by name, gathered, with its adapter if there is one; gradients flow through them."""
    return as_one(model, {name: full_parameter(parameter) for name, parameter in model.named_parameters()})


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of a model with its adapter merged in, in which no layer of `peft` is left; the model itself without an adapter that is known."""
    if not changes(model):
        return model
    with torch.no_grad():
        state = as_one(model, model.state_dict())
    plain = copy.deepcopy(model)
    for name, layer in [*adapter_layers(plain).items(), *saved_whole(plain).items()]:
        path, _, leaf = name.rpartition(".")
        inner = layer.original_module if hasattr(layer, "original_module") else layer.get_base_layer()
        setattr(plain.get_submodule(path), leaf, inner)
    plain.load_state_dict(state)
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    return plain.requires_grad_(True)


def _kept_by(layer: Any, adapted: bool) -> str:
    active = layer.active_adapters
    return f"modules_to_save.{active[0]}." if adapted and active else "original_module."


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def _factors(layer: Any) -> list[nn.Parameter]:
    """A and B of the active adapter; nothing where the layer has none."""
    active = [name for name in layer.active_adapters if name in getattr(layer, "lora_A", {})]
    return [layer.lora_A[active[0]].weight, layer.lora_B[active[0]].weight] if active else []
