"""Owners, keys and marked copies for tests of the watch."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_watermark import GreedyResidualsConfig, Owner, Watermark, WatermarkKey


def pretrained_like(architecture: str, seed: int = 0) -> nn.Module:
    """A net of timm in transformers' wrapper, with random weights none of which is zero."""
    import timm

    from hf_watermark.backbones import wrap_timm

    torch.manual_seed(seed)
    options: dict[str, Any] = {"zero_init_last": False} if architecture.startswith("resnet") else {}
    return wrap_timm(timm.create_model(architecture, num_classes=10, **options), architecture, 10).eval()


def marked_copy(start: nn.Module, folder: Path, config: Any = None, steps: int = 10) -> tuple[nn.Module, WatermarkKey]:
    """A copy with a mark, by minimising the penalty alone, which takes a second; and its key, saved under `folder`."""
    model = copy.deepcopy(start)
    config = config or GreedyResidualsConfig(strength=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    mark = Watermark(model, config, Owner.create())
    for _ in range(steps):
        optimizer.zero_grad()
        mark.loss().backward()
        optimizer.step()
    key = mark.key
    key.save(folder)
    return model, key


def changed(model: nn.Module, change: Callable[[nn.Module], Any]) -> nn.Module:
    """A copy that `change` was done to."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other)
    return other


def add_noise(share: float, seed: int = 1) -> Callable[[nn.Module], None]:
    """What fine-tuning does to weights, without the data: every weight moves by this share of its tensor's deviation."""

    def change(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(seed)
        for tensor in model.parameters():
            if tensor.ndim > 1:
                tensor += share * tensor.std() * torch.randn(tensor.shape, generator=generator)

    return change
