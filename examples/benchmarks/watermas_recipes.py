"""The five models of the WaterMAS benchmark, narrow enough for one core: four classifiers on CIFAR-10, one segmentation model on CamVid."""

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from data import MEAN, STD, load_cifar10
from timm.models.vgg import VGG
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TrainingArguments,
    set_seed,
)

from hf_watermark import wrap_timm


CAMVID_CLASSES, IGNORED = 11, 255


@dataclass(frozen=True)
class Recipe:
    """How one model is trained: AdamW, cosine schedule."""

    epochs: float
    learning_rate: float
    images: int
    batch_size: int = 128
    metric: str = "accuracy"


RECIPES = {
    "resnet18": Recipe(10, 3e-3, 5000),
    "deeplab": Recipe(10, 4e-3, 367, batch_size=8, metric="mIoU"),
    "mobilenetv3": Recipe(10, 4e-3, 5000),
    "vgg16": Recipe(8, 3e-3, 5000),
    "swin": Recipe(8, 2e-3, 5000),
}


def build(name: str, seed: int) -> PreTrainedModel:
    set_seed(seed)
    if name == "resnet18":
        config = ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32, 64, 96], depths=[2] * 4, layer_type="basic", num_labels=10
        )
        return ResNetForImageClassification(config)
    if name == "vgg16":
        widths = [12, 12, "M", 32, 32, "M", 48, 48, 48, "M", 64, 64, 64, "M", 64, 64, 64]
        return wrap_timm(VGG(widths, 10, norm_layer=nn.BatchNorm2d, mlp_ratio=1 / 64, drop_rate=0.0), "vgg16_bn", 10)
    if name == "mobilenetv3":
        return wrap_timm(timm.create_model("mobilenetv3_small_075", num_classes=10), "mobilenetv3_small_075", 10)
    if name == "swin":
        sizes = {"image_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 48}
        return SwinForImageClassification(SwinConfig(**sizes, depths=[2, 2], num_heads=[3, 6], num_labels=10))
    config = MobileNetV2Config(
        depth_multiplier=0.35, num_labels=CAMVID_CLASSES, output_stride=16, image_size=96, classifier_dropout_prob=0.1
    )
    return MobileNetV2ForSemanticSegmentation(config)


class Scenes(Dataset):
    """CamVid in memory: images `[n, 3, 96, 128]`, masks `[n, 96, 128]` with 255 where no class is labelled."""

    def __init__(self, images: torch.Tensor, masks: torch.Tensor, augment: bool):
        self.images, self.masks, self.augment = images, masks, augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict:
        image, mask = self.images[row], self.masks[row]
        if self.augment and torch.randint(2, ()).item():
            image, mask = image.flip(-1), mask.flip(-1)
        return {"pixel_values": image, "labels": mask}


def load_camvid(folder: Path, split: str, augment: bool = False) -> Scenes:
    import pyarrow.parquet as parquet
    from PIL import Image

    table = parquet.read_table(next(Path(folder).glob(f"{split}-*.parquet")))
    images, masks = [], []
    for cell in table.column("image").to_pylist():
        picture = Image.open(io.BytesIO(cell["bytes"])).convert("RGB").resize((128, 96), Image.Resampling.BILINEAR)
        images.append(np.asarray(picture, dtype=np.float32) / 255)
    for cell in table.column("annotation").to_pylist():
        mask = Image.open(io.BytesIO(cell["bytes"])).resize((128, 96), Image.Resampling.NEAREST)
        masks.append(np.asarray(mask, dtype=np.int64))
    pixels = (torch.from_numpy(np.stack(images)) - torch.tensor(MEAN)) / torch.tensor(STD)
    labels = torch.from_numpy(np.stack(masks))
    labels[labels >= CAMVID_CLASSES] = IGNORED
    return Scenes(pixels.permute(0, 3, 1, 2).contiguous(), labels, augment)


@cache
def load(name: str, data: Path, images: int | None = None) -> tuple[Any, Any]:
    """Training data (augmented) and test data (10,000 pictures of CIFAR-10; the 101 validation scenes of CamVid)."""
    if RECIPES[name].metric == "mIoU":
        return load_camvid(data / "camvid", "train", augment=True), load_camvid(data / "camvid", "val")
    train = load_cifar10(data / "cifar10", "train", augment=True)
    return train.first(images or RECIPES[name].images), load_cifar10(data / "cifar10", "test")


def arguments(name: str, seed: int, folder: Path | str, **changes: Any) -> TrainingArguments:
    recipe = RECIPES[name]
    fields: dict[str, Any] = {
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
    }
    fields |= {"weight_decay": 0.05, "lr_scheduler_type": "cosine", "warmup_steps": 20, "seed": seed, "use_cpu": True}
    fields |= {"save_strategy": "no", "report_to": "none", "logging_steps": 50, "disable_tqdm": True}
    return TrainingArguments(str(folder), dataloader_pin_memory=False, **fields | changes)


@torch.no_grad()
def task_metric(model: PreTrainedModel, data: Any) -> float:
    """Accuracy, or mean intersection over union over the classes that occur."""
    model.eval()
    rows = [data[row] for row in range(len(data))]
    confusion = torch.zeros(model.config.num_labels, model.config.num_labels)
    for first in range(0, len(rows), 100):
        batch = rows[first : first + 100]
        logits = model(pixel_values=torch.stack([row["pixel_values"] for row in batch])).logits
        labels = torch.stack([torch.as_tensor(row["labels"]) for row in batch])
        if logits.ndim == 4:
            logits = nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
        guess, known = logits.argmax(dim=1), labels != IGNORED
        places = labels[known] * len(confusion) + guess[known]
        confusion += torch.bincount(places, minlength=confusion.numel()).reshape(confusion.shape)
    right = confusion.diag()
    if logits.ndim == 2:
        return float(right.sum() / confusion.sum())
    union = confusion.sum(0) + confusion.sum(1) - right
    return float((right / union)[confusion.sum(1) > 0].mean())
