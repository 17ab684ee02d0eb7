"""Tiny models, data and arguments that several test folders build for themselves."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, ResNetConfig, ResNetForImageClassification, TrainingArguments


CLASSES = 10


def tiny_resnet(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    fields = {
        "num_channels": 1,
        "embedding_size": 16,
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "layer_type": "basic",
    }
    fields |= {"downsample_in_first_stage": False, "num_labels": CLASSES}
    return ResNetForImageClassification(ResNetConfig(**fields | changes)).eval()


def patterned_images(count: int = 400, seed: int = 1, variety: float = 0.0) -> list[dict[str, Any]]:
    """Images `[1, 16, 16]` of ten classes: each class is a fixed coarse pattern, plus noise and `variety` of a coarse pattern of the image's own."""
    coarse = torch.randn(CLASSES, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    patterns = nn.functional.interpolate(coarse, size=16, mode="bilinear")
    generator = torch.Generator().manual_seed(seed)
    noise = 0.1 * torch.randn(count, 1, 16, 16, generator=generator)
    if variety:
        own = torch.randn(count, 1, 6, 6, generator=generator)
        noise += variety * nn.functional.interpolate(own, size=16, mode="bilinear")
    return [{"pixel_values": patterns[i % CLASSES] + noise[i], "labels": i % CLASSES} for i in range(count)]


def coloured(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same images with three channels."""
    return [item | {"pixel_values": item["pixel_values"].repeat(3, 1, 1)} for item in items]


def training_arguments(folder: Path, **changes: Any) -> TrainingArguments:
    fields = {"use_cpu": True, "report_to": [], "seed": 0, "disable_tqdm": True, "save_strategy": "no"}
    fields |= {"per_device_train_batch_size": 40, "learning_rate": 3e-3, "lr_scheduler_type": "cosine"}
    return TrainingArguments(output_dir=str(folder), **fields | changes)
