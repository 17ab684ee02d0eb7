"""Tiny untrained victims and a task they can learn; nothing is downloaded."""

import pytest
import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)


def randomise(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Give the model lively weights and BatchNorm statistics, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2.0, generator=generator)
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            layer.bias.data.normal_(generator=generator)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data.normal_(std=layer.weight[0].numel() ** -0.5, generator=generator)
    return model.eval()


@pytest.fixture
def resnet() -> PreTrainedModel:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
    return randomise(ResNetForImageClassification(config))


@pytest.fixture
def timm_resnet() -> PreTrainedModel:
    arguments = {"channels": (4, 8, 8, 8), "stem_width": 4}
    config = TimmWrapperConfig(architecture="resnet10t", num_labels=4, model_args=arguments)
    return randomise(TimmWrapperForImageClassification(config))


@pytest.fixture
def vit() -> PreTrainedModel:
    config = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=4,
    )
    return randomise(ViTForImageClassification(config))


@pytest.fixture
def data() -> list[dict]:
    """64 images of 4 classes: each class is a fixed random image, plus noise."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.randn(4, 3, 16, 16, generator=generator)
    noise = 0.5 * torch.randn(64, 3, 16, 16, generator=generator)
    return [{"pixel_values": classes[i % 4] + noise[i], "labels": i % 4} for i in range(64)]


@pytest.fixture
def images(data: list[dict]) -> torch.Tensor:
    return torch.stack([example["pixel_values"] for example in data])


@pytest.fixture
def labels(data: list[dict]) -> torch.Tensor:
    return torch.tensor([example["labels"] for example in data])
