"""
Train or fine-tune a semantic-segmentation model that carries an ownership mark. Any data set with images and masks will do.

    python examples/train_semantic_segmentation.py \
        --model_name_or_path nvidia/mit-b0 --dataset path/to/parquet --output_dir runs/my-model --methods watermas

CamVid (367 street scenes; masks hold classes 0 to 10, and 11 where nothing is labelled), a small DeepLab from scratch on a CPU:

    python examples/train_semantic_segmentation.py --config_name deeplab.json --dataset FOLDER \
        --mask_column annotation --ignore_label 11 --image_size 96 128 --output_dir runs/camvid --methods watermas \
        --num_train_epochs 16 --learning_rate 4e-3 --per_device_train_batch_size 16

where `deeplab.json` is a config such as `{"model_type": "mobilenet_v2", "depth_multiplier": 0.35, "output_stride": 16}`.

Methods that read weights make sense here (`greedy_residuals`, `watermas`, both together); the others ask for one label per image. Each
method's options carry its name as a prefix (`--watermas_payload "licence 4711"`). The secret key goes to `<output_dir>-key`, beside the
model and never inside, before training starts.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from common import SourceArguments, WatermarkArguments, parse, pick_columns, train, two_splits
from datasets import DatasetDict, Image, load_dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)

from hf_watermark.mapping import METHODS


WHITE_BOX = [method for method, entry in METHODS.items() if entry.access == "weights"]
IGNORED = 255


@dataclass
class ModelArguments(SourceArguments):
    image_size: list[int] = field(
        default_factory=lambda: [512, 512], metadata={"help": "Height and width of the images.", "nargs": 2}
    )


@dataclass
class DataArguments:
    dataset: str = field(metadata={"help": "Hub id, or local folder of parquet files."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    image_column: str = field(default="image", metadata={"help": "Column with the images."})
    mask_column: str = field(default="annotation", metadata={"help": "Column with the masks: one class per pixel."})
    ignore_label: int | None = field(
        default=None, metadata={"help": "Pixel value that means no class; 255 always does."}
    )
    num_labels: int | None = field(
        default=None, metadata={"help": "Number of classes; read from the masks by default."}
    )
    eval_split: str | None = field(
        default=None, metadata={"help": "By default `validation` or `test`, else 10 %% of `train`."}
    )


@dataclass
class MarkArguments(WatermarkArguments):
    methods: list[str] = field(
        default_factory=lambda: ["watermas"], metadata={"help": f"Methods to embed: {', '.join(WHITE_BOX)}."}
    )


def load_data(arguments: DataArguments, seed: int) -> DatasetDict:
    """Splits `train` and `eval` with columns `image` and `mask`."""
    splits = load_dataset(arguments.dataset, arguments.dataset_config_name)
    splits = pick_columns(splits, arguments.dataset, image=arguments.image_column, mask=arguments.mask_column)
    splits = splits.cast_column("image", Image(mode="RGB")).cast_column("mask", Image())
    return two_splits(splits, arguments.eval_split, seed)


def read_mask(picture: Any, ignore_label: int | None) -> torch.Tensor:
    """`[height, width]` classes, 255 where there is none."""
    mask = np.asarray(picture)
    if mask.ndim != 2:
        raise SystemExit(f"a mask has the shape {mask.shape}; give masks with one class number per pixel")
    mask = mask.astype(np.int64)
    return torch.from_numpy(np.where(mask == ignore_label, IGNORED, mask) if ignore_label is not None else mask)


def count_classes(data: DatasetDict, ignore_label: int | None) -> int:
    masks = (read_mask(picture, ignore_label) for picture in data["train"]["mask"])
    return max(int(torch.where(mask == IGNORED, 0, mask).max()) for mask in masks) + 1


def load_model(arguments: ModelArguments, classes: int) -> PreTrainedModel:
    arguments.refuse_both()
    config = AutoConfig.from_pretrained(arguments.model_name_or_path or arguments.config_name)
    config.id2label = {number: f"class {number}" for number in range(classes)}
    config.label2id = {name: number for number, name in config.id2label.items()}
    config.semantic_loss_ignore_index = IGNORED
    if arguments.model_name_or_path is None:
        return AutoModelForSemanticSegmentation.from_config(config)
    return AutoModelForSemanticSegmentation.from_pretrained(
        arguments.model_name_or_path, config=config, ignore_mismatched_sizes=True
    )


def normalisation(arguments: ModelArguments) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that the model was trained with, or plain ones."""
    if arguments.model_name_or_path is not None:
        try:
            processor = AutoImageProcessor.from_pretrained(arguments.model_name_or_path)
            return processor.image_mean or [0.0] * 3, processor.image_std or [1.0] * 3
        except (OSError, AttributeError):  # saved without one, or one that does not normalise
            pass
    return [0.5] * 3, [0.5] * 3


def transform(train: bool, size: list[int], mean: list[float], std: list[float]) -> v2.Transform:
    """Crops and flips image and mask alike; masks are never interpolated."""
    height, width = size
    crop = [v2.RandomResizedCrop((height, width), scale=(0.6, 1.0), ratio=(0.8, 1.6)), v2.RandomHorizontalFlip()]
    kinds = {tv_tensors.Image: torch.float32, "others": None}
    steps = [
        *(crop if train else [v2.Resize((height, width))]),
        v2.ToDtype(kinds, scale=True),
        v2.Normalize(mean, std),
    ]
    return v2.Compose(steps)


def apply(change: v2.Transform, ignore_label: int | None, rows: dict[str, list]) -> dict[str, list]:
    pairs = [
        change(tv_tensors.Image(v2.functional.pil_to_tensor(image)), tv_tensors.Mask(read_mask(mask, ignore_label)))
        for image, mask in zip(rows["image"], rows["mask"], strict=True)
    ]
    return {"pixel_values": [image for image, _ in pairs], "labels": [torch.as_tensor(mask) for _, mask in pairs]}


def to_classes(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """Classes `[batch, height, width]` at the size of the labels: logits of a whole evaluation set would not fit into memory."""
    scores = logits[0] if isinstance(logits, tuple) else logits
    return torch.nn.functional.interpolate(scores, size=labels.shape[-2:], mode="bilinear").argmax(dim=1)


def scores(prediction: Any, classes: int) -> dict[str, float]:
    """Pixel accuracy, and intersection over union averaged over the classes that occur."""
    guess, labels = prediction.predictions, prediction.label_ids
    known = labels != IGNORED
    pairs = np.bincount(labels[known] * classes + guess[known], minlength=classes**2).reshape(classes, classes)
    right, occurs = np.diag(pairs), pairs.sum(1) > 0
    union = pairs.sum(0) + pairs.sum(1) - right
    return {"pixel_accuracy": right.sum() / pairs.sum(), "mean_iou": float((right[occurs] / union[occurs]).mean())}


def main() -> None:
    kinds = [ModelArguments, DataArguments, MarkArguments, TrainingArguments]
    (model_arguments, data_arguments, marks, training_arguments), configs = parse(kinds, WHITE_BOX)
    set_seed(training_arguments.seed)
    with training_arguments.main_process_first(desc="reading the data set"):
        data = load_data(data_arguments, training_arguments.seed)
    classes = data_arguments.num_labels or count_classes(data, data_arguments.ignore_label)
    model = load_model(model_arguments, classes)
    look = dict(zip(("mean", "std"), normalisation(model_arguments), strict=True))
    size, ignored = model_arguments.image_size, data_arguments.ignore_label
    views = {
        split: rows.with_transform(partial(apply, transform(split == "train", size, **look), ignored))
        for split, rows in data.items()
    }
    training_arguments.remove_unused_columns = False  # images are transformed when a batch asks for them
    train(
        model,
        training_arguments,
        marks,
        configs,
        train_dataset=views["train"],
        eval_dataset=views["eval"],
        compute_metrics=partial(scores, classes=classes),
        preprocess_logits_for_metrics=to_classes,
    )


if __name__ == "__main__":
    main()
