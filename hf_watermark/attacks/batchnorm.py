"""Attacks on BatchNorm: new running statistics, and sign flips that change weights but no answer."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from .base import Attack, NotApplicableError, private_seed, spent
from .training import collate


@dataclass
class ReestimateBatchNorm(Attack):
    """
    Forget the running statistics of BatchNorm and average them anew over batches of the attacker's data. No training.

    Args:
        batches (`int`, *optional*, defaults to 50):
            Batches to average over, at most; every batch counts the same.
        batch_size (`int`, *optional*, defaults to 128):
            Examples per batch.
        seed (`int`, *optional*, defaults to 0):
            Seed of the order of the data.
    """

    name: ClassVar[str] = "reestimate_batchnorm"
    needs_data: ClassVar[bool] = True

    batches: int = 50
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        self._check(isinstance(self.batches, int) and self.batches > 0, "batches", "give a positive integer")
        self._check(isinstance(self.batch_size, int) and self.batch_size > 1, "batch_size", "give an integer above 1")

    def budget(self, data: Any = None) -> dict[str, int]:
        if data is None:
            return super().budget(data)
        return spent(images=min(len(data), self.batches * self.batch_size))

    @torch.no_grad()
    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        norms = _batchnorms(model)
        momenta = [norm.momentum for norm in norms]
        model.eval()  # dropout stays off
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.train()
        loader = DataLoader(
            data,
            batch_size=self.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(private_seed(self.name, self.seed)),
            collate_fn=collate,
            drop_last=len(data) >= self.batch_size,  # a short last batch would count as much as a full one
        )
        for _, batch in zip(range(self.batches), loader, strict=False):
            model(pixel_values=batch["pixel_values"].to(model.device, model.dtype))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        return model


@dataclass
class FlipBatchNormSigns(Attack):
    """
    For random output channels of each convolution that feeds a BatchNorm, negate the row of the weight, the bias, and
    BatchNorm's weight and running mean. BN(-x) with a negated mean and scale is BN(x): not one answer changes, but all
    signs of the row do (SignFlip of Yan et al., https://huggingface.co/papers/2205.00199).

    Args:
        fraction (`float`, *optional*, defaults to 0.5):
            Fraction of the channels of each layer to flip.
        seed (`int`, *optional*, defaults to 0):
            Seed of the choice of channels.
    """

    name: ClassVar[str] = "flip_batchnorm_signs"

    fraction: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        self._check(0 < self.fraction <= 1, "fraction", "give a number above 0, up to 1")

    @torch.no_grad()
    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        _batchnorms(model)
        pairs = conv_batchnorm_pairs(model, sample_input(model, data))
        if not pairs:
            raise NotApplicableError(f"{type(model).__name__} has no convolution directly followed by a BatchNorm2d.")
        generator = torch.Generator().manual_seed(private_seed(self.name, self.seed))
        for conv, norm in pairs:
            order = torch.randperm(conv.out_channels, generator=generator)
            rows = order[: max(1, round(self.fraction * conv.out_channels))].to(conv.weight.device)
            for tensor in (conv.weight, conv.bias, norm.weight, norm.running_mean):
                if tensor is not None:
                    tensor[rows] *= -1
        return model


def conv_batchnorm_pairs(model: nn.Module, sample: torch.Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """
    Pairs of a convolution and the BatchNorm (affine, with running statistics) whose input is the very tensor that the
    convolution returned, found by running `sample`, of shape (1, C, H, W), through the model. Modules that run more
    than once are left out: flipping them would change their other use.
    """
    calls: list[nn.Module] = []
    outputs: list[tuple[nn.Conv2d, torch.Tensor]] = []  # holds the tensors: no second tensor may get their identity
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def on_conv(module: nn.Conv2d, args: tuple[Any, ...], output: torch.Tensor) -> None:
        calls.append(module)
        outputs.append((module, output))

    def on_norm(module: nn.BatchNorm2d, args: tuple[Any, ...]) -> None:
        calls.append(module)
        pairs.extend((conv, module) for conv, output in outputs if output is args[0])

    hooks = [m.register_forward_hook(on_conv) for m in model.modules() if isinstance(m, nn.Conv2d)]
    hooks += [
        m.register_forward_pre_hook(on_norm)
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d) and m.affine and m.running_mean is not None
    ]
    model.eval()
    with torch.no_grad():
        model(pixel_values=sample)
    for hook in hooks:
        hook.remove()
    return [(conv, norm) for conv, norm in pairs if calls.count(conv) == calls.count(norm) == 1]


def sample_input(model: PreTrainedModel, data: Any) -> torch.Tensor:
    """One example of the data, else a black image of the size named in the model's config (224 x 224 where it names none)."""
    if data is not None:
        return torch.as_tensor(data[0]["pixel_values"])[None].to(model.device, model.dtype)
    size = model.config.to_dict().get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    return torch.zeros(1, first.in_channels, height, width, device=model.device, dtype=model.dtype)


def _batchnorms(model: nn.Module) -> list[nn.BatchNorm2d]:
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not norms:
        raise NotApplicableError(f"{type(model).__name__} has no BatchNorm2d layer: this attack does not apply to it.")
    return norms
