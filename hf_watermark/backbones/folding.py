"""
Folded coordinates: a network as the function of its weights that inference really computes, with every BatchNorm folded away.

In evaluation a BatchNorm is the affine map `a x + b` with `a = gamma / sqrt(var + eps)` and `b = beta - a mean`. Right behind a
convolution or linear layer it is folded into that layer's weight and bias; elsewhere it stays as `(a, b)`. Two models that
differ by rescaling a layer against its BatchNorm have the same folded weights, and running statistics are part of them.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..serialization import InvalidInput
from .adapted import as_one


Tensors = dict[str, torch.Tensor]
FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# Largest change of a logit, against the largest logit, that rounding may explain.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Fold:
    """
    One BatchNorm and the layer whose output it reads, if it reads one directly.

    Args:
        norm (`str`):
            Module name of the BatchNorm.
        layer (`str`, *optional*):
            Module name of the convolution or linear layer that it is folded into.
        eps (`float`):
            The BatchNorm's epsilon.
    """

    norm: str
    layer: str | None
    eps: float


class FoldedNet:
    """
    The architecture of one model in folded coordinates. Holds no weights of its own that matter: they are passed to every call.

    Args:
        model (`nn.Module`):
            An image classifier. It is not changed.
        images (`torch.Tensor`):
            A few images `[n, channels, height, width]`; one forward pass over them shows which BatchNorm follows which layer.
        fold (`bool`, *optional*, defaults to `True`):
            `False` keeps the parameters as they are and the buffers out of the coordinates.

    Raises:
        [`~serialization.InvalidInput`]: for weights below float32, or when the folded net does not compute what the model computes.
    """

    def __init__(self, model: nn.Module, images: torch.Tensor, fold: bool = True):
        refuse_half_precision(model)
        images = images.to(next(model.parameters()))
        self.folds = find_folds(model, images) if fold else []
        self._folded_norms = {item.norm for item in self.folds}
        # The template has shapes but no values, so it costs no memory.
        empty = {id(parameter): _without_values(parameter) for parameter in model.parameters()}
        self.template = copy.deepcopy(model, empty).eval()  # type: ignore[arg-type]
        for item in self.folds:
            _neutralise(self.template, item)
        weights = self.coordinates(model)
        if fold:
            self._refuse_another_function(model, weights, images)

    def coordinates(self, model: nn.Module, parameters: Mapping[str, torch.Tensor] | None = None) -> Tensors:
        """
        Folded weights of a live model of this architecture by name in the template; gradients flow to its parameters. Buffers that are not
        folded are taken over into the template.

        Args:
            parameters (`Mapping[str, torch.Tensor]`, *optional*):
                The model's parameters by name where they are not simply its own (gathered shards).
        """
        buffers = as_one(model, dict(model.named_buffers()))
        with torch.no_grad():
            for name, buffer in self.template.named_buffers():
                if name.rpartition(".")[0] not in self._folded_norms:
                    buffer.copy_(buffers[name])
        return self.fold(parameters or as_one(model, dict(model.named_parameters())), buffers)

    def fold(self, parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> Tensors:
        """
        Args:
            parameters, buffers (`Mapping[str, torch.Tensor]`):
                By name, as in `named_parameters` and `named_buffers` of the model.
        """
        folded = dict(parameters)
        for item in self.folds:
            mean, variance = buffers[f"{item.norm}.running_mean"], buffers[f"{item.norm}.running_var"]
            scale = torch.rsqrt(variance + item.eps)
            gamma, beta = (folded.pop(f"{item.norm}.{name}", None) for name in ("weight", "bias"))
            slope = scale if gamma is None else gamma * scale
            if item.layer is None:
                folded[f"{item.norm}.weight"] = slope
                folded[f"{item.norm}.bias"] = (0 if beta is None else beta) - slope * mean
                continue
            weight, bias = folded[f"{item.layer}.weight"], folded.get(f"{item.layer}.bias")
            shift = -mean if bias is None else bias - mean
            folded[f"{item.layer}.weight"] = weight * slope.reshape(-1, *[1] * (weight.ndim - 1))
            folded[f"{item.layer}.bias"] = slope * shift + (0 if beta is None else beta)
        return folded

    def __call__(self, weights: Mapping[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Logits `[n, classes]` of the net with these folded weights; BatchNorm statistics are neither used nor changed."""
        return logits_of(torch.func.functional_call(self.template, dict(weights), (images,)))

    def holding(self, weights: Mapping[str, torch.Tensor]) -> nn.Module:
        """A module whose parameters *are* these tensors, for many passes over weights that change in place."""
        given = {
            id(self.template.get_parameter(name)): nn.Parameter(tensor, False) for name, tensor in weights.items()
        }
        return copy.deepcopy(self.template, given)  # type: ignore[arg-type]

    @torch.no_grad()
    def _refuse_another_function(self, model: nn.Module, weights: Tensors, images: torch.Tensor) -> None:
        with evaluation_mode(model):
            wanted = logits_of(model(images))
        error = (self(weights, images) - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6)
        if not error <= TOLERANCE:
            raise InvalidInput(
                f"folding the BatchNorms changes the answers by {float(error):.2g} of the largest logit: this architecture uses a "
                "layer's weights in another place too; use `moves='parameters'`"
            )


def find_folds(model: nn.Module, images: torch.Tensor) -> list[Fold]:
    """Every BatchNorm with running statistics, and the layer whose output object it is given."""
    from .treatment import Treatment, observe  # which needs this module

    seen = observe(model).treatments
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    outputs: dict[int, tuple[str, int]] = {}
    kept: list[torch.Tensor] = []
    pairs: dict[str, str | None] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            outputs[id(output)] = name, output._version
            kept.append(output)  # a freed tensor would lend its id to another one

        return hook

    def look_up(name: str) -> Any:
        def hook(module: nn.Module, args: tuple) -> None:
            readers.inside += 1
            layer, version = outputs.get(id(args[0]), (None, 0))
            # The same object with another version was changed in place in between, by an activation say.
            direct = args[0]._version == version and name not in pairs
            pairs[name] = layer if direct else None

        return hook

    def leave(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        readers.inside -= 1

    readers = _Readers(outputs)
    hooks: list[Any] = [norm.register_forward_pre_hook(look_up(name)) for name, norm in norms.items()]
    hooks += [norm.register_forward_hook(leave) for norm in norms.values()]
    hooks += [
        module.register_forward_hook(remember(name))
        for name, module in model.named_modules()
        # Nothing can be folded into rows that are normalised themselves before they are used.
        if isinstance(module, FOLDABLE) and seen.get(f"{name}.weight", Treatment()) == Treatment()
    ]
    try:
        with torch.no_grad(), evaluation_mode(model), readers:
            model(images[:1])
    finally:
        for hook in hooks:
            hook.remove()
    # A shortcut that begins at the layer itself has its output without the normalisation.
    shared = {layer for key, (layer, _) in outputs.items() if key in readers.read}
    readers_of = Counter(pairs.values())
    pairs = {name: None if layer in shared or readers_of[layer] > 1 else layer for name, layer in pairs.items()}
    return [Fold(name, pairs.get(name), norm.eps) for name, norm in norms.items() if norm.running_mean is not None]


class _Readers(TorchFunctionMode):
    """Which outputs of layers anything but a normalisation computes with, by their id."""

    def __init__(self, outputs: Mapping[int, Any]) -> None:
        super().__init__()
        self.outputs = outputs
        self.inside = 0
        self.read: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self.inside and any(isinstance(item, torch.Tensor) for item in tree_leaves(result)):
            self.read |= {id(item) for item in tree_leaves((args, kwargs)) if id(item) in self.outputs}
        return result


def _neutralise(template: nn.Module, item: Fold) -> None:
    """Makes room for the folded bias and turns the BatchNorm into the identity (or into `a x + b` where it stands alone)."""
    norm = template.get_submodule(item.norm)
    if item.layer is not None:
        layer: Any = template.get_submodule(item.layer)
        if layer.bias is None:
            layer.bias = _without_values(layer.weight[:, *[0] * (layer.weight.ndim - 1)])
        if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            template.set_submodule(item.norm, nn.Identity())
            return
        # A subclass may do more than normalise (timm's has the activation inside), so it stays, as a constant.
        norm.weight, norm.bias = None, None  # type: ignore[assignment]
    elif norm.weight is None:
        norm.weight = _without_values(norm.running_mean)  # type: ignore[assignment,arg-type]
        norm.bias = _without_values(norm.running_mean)  # type: ignore[assignment,arg-type]
    norm.running_mean.zero_()  # type: ignore[operator,union-attr]
    norm.running_var.fill_(1 - item.eps)  # type: ignore[operator,union-attr]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode; afterwards each is back in its own, as a user may have frozen some."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _without_values(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(tensor, device="meta"), requires_grad=False)


def refuse_half_precision(model: nn.Module) -> None:
    """Noise that is smaller than the spacing of the weights is no noise."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, torch.float64):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise InvalidInput(
                f"{name} is {kind}: parameter noise needs float32 weights; load the model with `dtype=torch.float32` "
                "(training with `bf16=True` keeps float32 weights and is fine)"
            )


def logits_of(output: Any) -> torch.Tensor:
    """
    The logits in whatever a model returns: a tensor, something with `logits`, or a tuple or list that begins with them.

    Raises:
        [`~serialization.InvalidInput`]: when there are none.
    """
    found = output
    if isinstance(found, Mapping):
        found = found.get("logits", next(iter(found.values()), None) if len(found) == 1 else None)
    elif not isinstance(found, torch.Tensor) and hasattr(found, "logits"):
        found = found.logits
    elif isinstance(found, tuple | list):
        found = next((item for item in found if isinstance(item, torch.Tensor) and item.ndim > 1), None)
    if not isinstance(found, torch.Tensor):
        kind = type(output).__name__
        raise InvalidInput(
            f"the model returns a {kind} without `logits`; wrap it in a function from images to logits [n, classes]"
        )
    return found
