"""
Train or fine-tune an image classifier that carries an ownership mark.

    python examples/train_image_classification.py \
        --model_name_or_path microsoft/resnet-50 --dataset path/to/imagefolder --output_dir runs/my-model --methods greedy_residuals

    accelerate launch examples/train_image_classification.py \
        --model_name_or_path google/vit-base-patch16-224-in21k --dataset ethz/food101 --output_dir runs/food \
        --methods greedy_residuals function_coupled --function_coupled_rules 96 --num_train_epochs 3

    torchrun --nproc_per_node 2 examples/train_image_classification.py \
        --config_name resnet-config.json --dataset path/to/parquet --output_dir runs/scratch --image_size 64

Each method's options carry its name as a prefix (`--greedy_residuals_bits`). `--methods` chooses which methods embed. All options
can also stand in one JSON file, given as the only argument. The secret key goes to `<output_dir>-key`, beside the model and never inside,
before training starts, so that an interrupted run continues with `--resume_from_checkpoint`.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from common import SourceArguments, WatermarkArguments, parse, pick_columns, train, two_splits
from datasets import ClassLabel, DatasetDict, Image, Value, load_dataset
from torchvision.transforms import v2
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)

from hf_watermark import wrap_timm
from hf_watermark.mapping import METHODS


@dataclass
class ModelArguments(SourceArguments):
    image_size: int | None = field(
        default=None, metadata={"help": "Image height and width; the model's own by default."}
    )


@dataclass
class DataArguments:
    dataset: str = field(metadata={"help": "Hub id, or local folder of images by class or of parquet files."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    image_column: str = field(default="image", metadata={"help": "Column with the images."})
    label_column: str = field(default="label", metadata={"help": "Column with the labels."})
    eval_split: str | None = field(
        default=None, metadata={"help": "By default `validation` or `test`, else 10 %% of `train`."}
    )


def load_data(arguments: DataArguments, seed: int) -> DatasetDict:
    """Splits `train` and `eval` with columns `image` and `label`."""
    splits = load_dataset(arguments.dataset, arguments.dataset_config_name)
    splits = pick_columns(splits, arguments.dataset, image=arguments.image_column, label=arguments.label_column)
    splits = splits.cast_column("image", Image(mode="RGB"))
    if not isinstance(splits["train"].features["label"], ClassLabel):
        names = [str(label) for label in sorted(splits["train"].unique("label"))]
        splits = splits.cast_column("label", Value("string")).cast_column("label", ClassLabel(names=names))
    return two_splits(splits, arguments.eval_split, seed, stratify_by_column="label")


def load_model(arguments: ModelArguments, names: list[str]) -> PreTrainedModel:
    arguments.refuse_both()
    config = AutoConfig.from_pretrained(arguments.model_name_or_path or arguments.config_name)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    extra = {}
    if config.model_type == "timm_wrapper":
        # timm's own exports name the number of classes a second time.
        extra = {name: value for name, value in (config.model_args or {}).items() if name != "num_classes"}
        config.model_args = extra or None
        config.label_names = names
    if arguments.model_name_or_path is not None:
        return AutoModelForImageClassification.from_pretrained(
            arguments.model_name_or_path, config=config, ignore_mismatched_sizes=True
        )
    if config.model_type != "timm_wrapper":
        return AutoModelForImageClassification.from_config(config)
    # The wrapper would draw its own initial weights; `wrap_timm` keeps timm's.
    model = wrap_timm(
        timm.create_model(config.architecture, num_classes=len(names), **extra),
        config.architecture,
        len(names),
        **extra,
    )
    model.config.id2label, model.config.label2id = config.id2label, config.label2id
    return model


def normalisation(arguments: ModelArguments, config: PretrainedConfig) -> dict[str, Any]:
    """Image size, mean and standard deviation that the model was trained with, or plain ones."""
    fields = config.to_dict()
    known: dict[str, Any] = {"size": 224, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    if stored := fields.get("pretrained_cfg"):  # timm
        known = {"size": stored["input_size"][-1], "mean": stored["mean"], "std": stored["std"]}
    elif arguments.model_name_or_path is not None:
        try:
            processor = AutoImageProcessor.from_pretrained(arguments.model_name_or_path)
            known |= {"mean": processor.image_mean, "std": processor.image_std}
        except OSError:  # saved without one
            pass
    if isinstance(fields.get("image_size"), int):
        known["size"] = fields["image_size"]
    return known | ({"size": arguments.image_size} if arguments.image_size else {})


def transform(train: bool, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> v2.Transform:
    crop = [v2.RandomResizedCrop(size, scale=(0.6, 1.0)), v2.RandomHorizontalFlip()]
    return v2.Compose(
        [
            v2.ToImage(),
            *(crop if train else [v2.Resize((size, size))]),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )


def apply(images: v2.Transform, rows: dict[str, list]) -> dict[str, list]:
    return {"pixel_values": [images(image) for image in rows["image"]], "labels": rows["label"]}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(axis=1) == prediction.label_ids))}


def main() -> None:
    kinds = [ModelArguments, DataArguments, WatermarkArguments, TrainingArguments]
    (model_arguments, data_arguments, marks, training_arguments), configs = parse(kinds, list(METHODS))
    set_seed(training_arguments.seed)
    with training_arguments.main_process_first(desc="reading the data set"):
        data = load_data(data_arguments, training_arguments.seed)
    model = load_model(model_arguments, data["train"].features["label"].names)
    look = normalisation(model_arguments, model.config)
    # Images are decoded and transformed when a batch asks for them.
    training_arguments.remove_unused_columns = False
    train(
        model,
        training_arguments,
        marks,
        configs,
        train_dataset=data["train"].with_transform(partial(apply, transform(True, **look))),
        eval_dataset=data["eval"].with_transform(partial(apply, transform(False, **look))),
        compute_metrics=accuracy,
    )


if __name__ == "__main__":
    main()
