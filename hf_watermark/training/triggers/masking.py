"""Weight masking while triggers are learnt, so that the mark spreads over many weights (Wen et al. 2023)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn


MASKINGS = ("forward", "fc_v1", "fc_v2", "none")


def maskable_weights(model: nn.Module, classes: int) -> list[nn.Parameter]:
    """Convolution kernels that train, or the linear weights of a backbone without any; never the classifier head."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    weights = [parameter for parameter in trained if parameter.ndim >= 2 and parameter.shape[0] != classes]
    kernels = [weight for weight in weights if weight.ndim == 4 and weight.shape[-1] > 1]
    return kernels if len(kernels) > 1 else [weight for weight in weights if weight.ndim in (2, 4)]


def masked(
    weights: list[nn.Parameter], masking: str, step: int, generator: torch.Generator
) -> AbstractContextManager[None]:
    """
    The masking of one batch as a context around its forward and backward pass.

    * `forward`: every tenth batch a random 0.2 % of the weights is zero in this pass only: values come back afterwards and masked
      weights get no gradient from it.
    * `fc_v1`: 20 % of all weights, the smallest magnitudes, are *written* to zero before every batch (code of the first release).
    * `fc_v2`: a random 0.2 % is written to zero before every tenth batch (current code of the authors).
    """
    if masking == "none" or (masking in ("forward", "fc_v2") and step % 10 != 0):
        return nullcontext()
    if masking == "fc_v1":
        _prune_smallest(weights, 0.2)
        return nullcontext()
    weights = [weight for weight in weights if weight.requires_grad]  # some may have been frozen since
    places = [_random_places(weight, 0.002, generator) for weight in weights]
    if masking == "fc_v2":
        with torch.no_grad():
            for weight, place in zip(weights, places, strict=True):
                weight[place] = 0
        return nullcontext()
    return _masked_forward(weights, places)


# One index tensor per dimension: weights may be stored channels last, so there is no flat view to write through.
Places = tuple[torch.Tensor, ...]


@contextmanager
def _masked_forward(weights: list[nn.Parameter], places: list[Places]) -> Iterator[None]:
    with torch.no_grad():
        values = [weight[place] for weight, place in zip(weights, places, strict=True)]
        for weight, place in zip(weights, places, strict=True):
            weight[place] = 0
    # Hooks cut the gradient of this pass before it is added to earlier micro-batches and averaged over processes.
    hooks = [weight.register_hook(partial(_without, place)) for weight, place in zip(weights, places, strict=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for weight, place, value in zip(weights, places, values, strict=True):
                weight[place] = value


def _without(place: Places, grad: torch.Tensor) -> torch.Tensor:
    grad = grad.clone()
    grad[place] = 0
    return grad


def _random_places(weight: nn.Parameter, share: float, generator: torch.Generator) -> Places:
    count = max(1, int(weight.numel() * share))
    flat = torch.randint(weight.numel(), (count,), generator=generator).to(weight.device)
    return torch.unravel_index(flat, weight.shape)


def _prune_smallest(weights: list[nn.Parameter], share: float) -> None:
    with torch.no_grad():
        magnitudes = torch.cat([weight.abs().flatten() for weight in weights])
        limit = magnitudes.kthvalue(max(1, int(share * magnitudes.numel()))).values
        for weight in weights:
            weight[weight.abs() <= limit] = 0


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorms take their running statistics as they are, and leave them so."""
    norms = [
        module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True
