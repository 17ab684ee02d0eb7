"""The two recipes that the benchmarks share: a net of 0.31 M parameters on handwritten digits, and one on CIFAR-10."""

from pathlib import Path
from typing import Any

import torch
from data import ImagesInMemory, load_cifar10
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_watermark.evaluation.digits import build_digits_model, load_digits_data


LEARNING_RATES = {"digits": 4e-3, "cifar10": 3e-3}
EPOCHS = {"digits": 30, "cifar10": 8}


def build_model(task: str, seed: int) -> PreTrainedModel:
    set_seed(seed)
    if task == "digits":
        return build_digits_model(seed)
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic", num_labels=10
    )
    return ResNetForImageClassification(config).to(memory_format=torch.channels_last)


def load_data(task: str, folder: Path | None, images: int | None = None, held_out: int = 0) -> tuple[Any, Any]:
    """Training and test data; CIFAR-10 is augmented. With `held_out`, that many training images take the place of its test set."""
    if task == "digits":
        return load_digits_data("train"), load_digits_data("test")
    if folder is None:
        raise SystemExit("cifar10 needs --data, the folder of its parquet files")
    train = load_cifar10(folder, "train", augment=True)
    if held_out:
        return train.first(len(train) - held_out), ImagesInMemory(train.images[-held_out:], train.labels[-held_out:])
    return train.first(images or len(train)), load_cifar10(folder, "test")


def arguments(task: str, seed: int, epochs: float, folder: Path | str) -> TrainingArguments:
    digits = task == "digits"
    return TrainingArguments(
        str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=64 if digits else 128,
        learning_rate=LEARNING_RATES[task],
        weight_decay=0.0 if digits else 0.05,
        lr_scheduler_type="cosine",
        warmup_steps=50 if digits else 200,
        seed=seed,
        save_strategy="no",
        report_to="none",
        logging_strategy="no" if digits else "steps",
        logging_steps=100,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def train_twin(task: str, seed: int, epochs: float, folder: Path | str, train: Any) -> Trainer:
    """The unmarked model of the same seed, data and recipe."""
    twin = Trainer(model=build_model(task, seed), args=arguments(task, seed, epochs, folder), train_dataset=train)
    twin.model_accepts_loss_kwargs = False
    twin.train()
    return twin
