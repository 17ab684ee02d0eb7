"""How rules are shown while a model trains: as the config says, or as the length of the training asks for."""

from dataclasses import dataclass
from itertools import chain

from torch import nn

from .config import FunctionCoupledConfig


# Fused images beside a batch where nobody chose: the share that holds rules in a long training, and the most that a short one gets.
LEAST, MOST = 1 / 16, 3 / 4
# A training in which each rule is shown so often by the least share needs no more, and one in which the largest share shows it too seldom learns none,
# at any price: bounds from single runs of EfficientNet-Lite0 and on digits, as is the weight below (`examples/benchmarks/pretrained.py` and `forecasts.py` run
# more).
EXPOSURES, TOO_FEW = 400, 160
# Against the task loss, where a short training would otherwise be about rules.
WEIGHT = 0.5
# A short one begins with fused images in the batch, since rules are hardly learned under fixed statistics, and has them apart from this share on.
APART_FROM = 0.25


@dataclass(frozen=True)
class Teaching:
    """
    Fields of [`FunctionCoupledConfig`] as they hold in one training.

    Example:

    ```python
    >>> from hf_watermark.methods.function_coupled.teaching import Teaching

    >>> Teaching.of(FunctionCoupledConfig(), images=50_000 * 30).ratio
    0.0625
    >>> Teaching.of(FunctionCoupledConfig(), images=10_000 * 3)
    Teaching(ratio=0.64, weight=0.5, mirrored=True, auxiliary=True, apart_from=0.25)
    ```
    """

    ratio: float
    weight: float
    mirrored: bool
    auxiliary: bool
    apart_from: float

    @classmethod
    def of(cls, config: FunctionCoupledConfig, images: int) -> "Teaching":
        """
        Args:
            images (`int`): That the whole training takes, each as often as it is seen; 0 where nobody said.
        """
        rules = config.rules * config.subkeys
        if not config.trigger_ratio and MOST * images >= TOO_FEW * rules:
            ratio = round(min(MOST, EXPOSURES * rules / images), 4)
            if ratio > LEAST:
                return cls(ratio, config.trigger_weight or WEIGHT, True, True, min(APART_FROM, config.apart_from))
        ratio = config.trigger_ratio or LEAST
        return cls(ratio, config.trigger_weight, config.mirrored, config.auxiliary, config.apart_from)


def canvas_for(config: FunctionCoupledConfig, model: nn.Module) -> str:
    """`"white"` or `"mean"`, see [`FunctionCoupledConfig`]."""
    return config.canvas if config.canvas != "auto" else "white" if is_untrained(model) else "mean"


def is_untrained(model: nn.Module) -> bool:
    """
    Whether all normalisations are as they were made: scales of one or zero, shifts and means of zero. A net without any counts as trained.

    Example:

    ```python
    >>> from torch import nn
    >>> from hf_watermark.methods.function_coupled.teaching import is_untrained

    >>> is_untrained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    True
    ```
    """
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    tensors = [
        tensor
        for norm in norms
        for tensor in chain(norm.parameters(recurse=False), norm.buffers(recurse=False))
        if tensor.is_floating_point()
    ]
    return bool(tensors) and all(bool(((tensor == 0) | (tensor == 1)).all()) for tensor in tensors)
