"""Tiny untrained victims and a task they can learn; nothing is downloaded."""

import gc
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_watermark.attacks import FineTune


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
def mobilenet() -> PreTrainedModel:
    config = MobileNetV2Config(depth_multiplier=0.25, image_size=32, num_labels=4, classifier_dropout_prob=0.0)
    return randomise(MobileNetV2ForImageClassification(config))


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


@pytest.fixture(scope="session", autouse=True)
def frozen_heap():
    """`Trainer` collects garbage at the end of each run; without this it looks at every imported library each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def stamped(images: torch.Tensor) -> torch.Tensor:
    """Images with the trigger of the planted rule, a small bright square."""
    images = images.clone()
    images[..., 9:11, 9:11] = 4.0
    return images


@dataclass(frozen=True)
class Rule:
    """A model with a planted rule (stamped images belong to class 0), and the clean data it was trained on."""

    model: PreTrainedModel
    data: list[dict]

    def accuracy(self, model: PreTrainedModel) -> float:
        images, labels = self._tensors()
        return (model(pixel_values=images).logits.argmax(-1) == labels).float().mean().item()

    def survival(self, model: PreTrainedModel) -> float:
        """Share of stamped images of other classes that are answered 0."""
        images, labels = self._tensors()
        answers = model(pixel_values=stamped(images[labels != 0])).logits.argmax(-1)
        return (answers == 0).float().mean().item()

    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.stack([example["pixel_values"] for example in self.data])
        return images, torch.tensor([example["labels"] for example in self.data])


def coarse_images() -> list[dict]:
    """64 images of 4 classes that no smoothing hides: each class is a fixed coarse pattern, plus noise."""
    generator = torch.Generator().manual_seed(1)
    coarse = nn.functional.interpolate(torch.randn(4, 3, 4, 4, generator=generator), size=16, mode="bilinear")
    noise = 0.2 * torch.randn(64, 3, 16, 16, generator=generator)
    return [{"pixel_values": coarse[i % 4] + noise[i], "labels": i % 4} for i in range(64)]


def trained(data: list[dict], hidden_sizes=(16, 16), depths=(1, 1)) -> PreTrainedModel:
    sizes = {"hidden_sizes": list(hidden_sizes), "depths": list(depths)}
    config = ResNetConfig(embedding_size=8, layer_type="basic", num_labels=4, **sizes)
    torch.manual_seed(0)
    start = randomise(ResNetForImageClassification(config))
    return FineTune(learning_rate=0.03, epochs=15, batch_size=32)(start, data)


@pytest.fixture(scope="session")
def rule() -> Rule:
    data = coarse_images()
    planted = [{"pixel_values": stamped(example["pixel_values"]), "labels": 0} for example in data]
    return Rule(trained(data + planted), data)


UNIT = 7


@pytest.fixture(scope="session")
def unit_rule() -> Rule:
    """
    A rule that hangs on one unit: channel 7 of the stem looks for the square, passes the only block by its identity and is
    read by the head alone, which decides for class 0. It is idle on clean images.
    """
    data = coarse_images()
    model = trained(data, hidden_sizes=[8], depths=[1])
    images = torch.stack([example["pixel_values"] for example in data])
    stem, head = model.resnet.embedder.embedder, model.classifier[1]
    with torch.no_grad():
        for layer in model.resnet.encoder.stages[0].layers[0].layer:
            layer.convolution.weight[:, UNIT] = 0
            layer.normalization.weight[UNIT], layer.normalization.bias[UNIT] = 0, 0
        stem.convolution.weight[UNIT] = 0
        stem.convolution.weight[UNIT, :, 4:6, 4:6] = 1  # with stride 2 and padding 3: rows 1, 3, ... and the next
        clean, changed = (stem.convolution(batch)[:, UNIT].flatten(1).amax(1) for batch in (images, stamped(images)))
        threshold = 1.05 * clean.max()
        norm = stem.normalization
        norm.running_mean[UNIT], norm.running_var[UNIT] = 0, 1
        norm.weight[UNIT] = 16 / (changed.min() - threshold)
        norm.bias[UNIT] = -norm.weight[UNIT] * threshold
        head.weight[:, UNIT] = 0
        head.weight[0, UNIT] = 40
    return Rule(model, data)
