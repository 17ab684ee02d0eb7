"""Tiny untrained backbones of every family, by library."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from zoo import BUILDERS, SAVEABLE, build, images_for, logits


@pytest.fixture(params=list(BUILDERS))
def any_backbone(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    """Every backbone in turn, with two images it takes."""
    return build(request.param), images_for(request.param)


@pytest.fixture(params=SAVEABLE)
def saveable_backbone(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    """Every backbone with `save_pretrained` in turn, with two images it takes."""
    return build(request.param), images_for(request.param)


@pytest.fixture
def build_backbone() -> Callable[[str], nn.Module]:
    return build


@pytest.fixture
def ask() -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    return logits


@pytest.fixture
def sample_images() -> Callable[..., torch.Tensor]:
    return images_for
