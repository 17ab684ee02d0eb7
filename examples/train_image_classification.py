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

import dataclasses
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from datasets import ClassLabel, DatasetDict, Image, Value, load_dataset
from torchvision.transforms import v2
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    PretrainedConfig,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)

from hf_watermark import AutoTrainer, AutoWatermarkConfig, Owner, WatermarkKey, stack_trainers, wrap_timm
from hf_watermark.configuration import FORMAT_VERSION
from hf_watermark.mapping import METHODS


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "Hub id or folder to fine-tune."})
    config_name: str | None = field(
        default=None, metadata={"help": "Config (JSON file, folder, Hub id) to train from scratch."}
    )
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


@dataclass
class WatermarkArguments:
    methods: list[str] = field(
        default_factory=lambda: ["greedy_residuals"], metadata={"help": f"Methods to embed: {', '.join(METHODS)}."}
    )
    owner: str | None = field(
        default=None, metadata={"help": "Owner file from `hf-watermark owner create`; a fresh owner by default."}
    )
    key_dir: str | None = field(
        default=None, metadata={"help": "Folder of the secret key; `<output_dir>-key` by default."}
    )
    passphrase_file: str | None = field(
        default=None, metadata={"help": "File whose first line opens the owner file and seals owner and key."}
    )


def method_arguments(method: str) -> type:
    """A dataclass with the fields of a method's config, each prefixed with the method's name."""
    fields = dataclasses.fields(METHODS[method].load("Config"))
    prefixed = [
        (f"{method}_{item.name}", item.type, field(default=item.default, metadata=item.metadata)) for item in fields
    ]
    return dataclasses.make_dataclass(f"{method}_arguments", prefixed)


def load_data(arguments: DataArguments, seed: int) -> DatasetDict:
    """Splits `train` and `eval` with columns `image` and `label`."""
    splits = load_dataset(arguments.dataset, arguments.dataset_config_name)
    for column in (arguments.image_column, arguments.label_column):
        if column not in splits["train"].column_names:
            raise SystemExit(f"no column {column!r} in {arguments.dataset}; it has {splits['train'].column_names}")
    splits = splits.select_columns([arguments.image_column, arguments.label_column])
    splits = splits.rename_columns({arguments.image_column: "image", arguments.label_column: "label"})
    splits = splits.cast_column("image", Image(mode="RGB"))
    if not isinstance(splits["train"].features["label"], ClassLabel):
        names = [str(label) for label in sorted(splits["train"].unique("label"))]
        splits = splits.cast_column("label", Value("string")).cast_column("label", ClassLabel(names=names))
    name = arguments.eval_split or next((name for name in ("validation", "test") if name in splits), None)
    if name is None:
        parts = splits["train"].train_test_split(0.1, seed=seed, stratify_by_column="label")
        return DatasetDict(train=parts["train"], eval=parts["test"])
    return DatasetDict(train=splits["train"], eval=splits[name])


def load_model(arguments: ModelArguments, names: list[str]) -> PreTrainedModel:
    if (arguments.model_name_or_path is None) == (arguments.config_name is None):
        raise SystemExit("give exactly one of --model_name_or_path (fine-tune) and --config_name (train from scratch)")
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


def read_passphrase(path: str | None) -> str | None:
    return None if path is None else Path(path).read_text().splitlines()[0]


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(axis=1) == prediction.label_ids))}


def main() -> None:
    parser = HfArgumentParser(
        [ModelArguments, DataArguments, WatermarkArguments, TrainingArguments, *map(method_arguments, METHODS)]
    )
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        parsed = parser.parse_json_file(sys.argv[1])
    else:
        parsed = parser.parse_args_into_dataclasses()
    model_arguments, data_arguments, mark_arguments, training_arguments = parsed[:4]
    options = dict(zip(METHODS, parsed[4:], strict=True))
    configs = []
    for method in mark_arguments.methods:
        if method not in METHODS:
            raise SystemExit(f"--methods: {method!r} does not exist; choose from {', '.join(METHODS)}")
        fields = {name.removeprefix(f"{method}_"): value for name, value in vars(options[method]).items()}
        configs.append(AutoWatermarkConfig.from_dict({"method": method, "format_version": FORMAT_VERSION, **fields}))
    set_seed(training_arguments.seed)
    with training_arguments.main_process_first(desc="reading the data set"):
        data = load_data(data_arguments, training_arguments.seed)
    model = load_model(model_arguments, data["train"].features["label"].names)
    look = normalisation(model_arguments, model.config)
    # Images are decoded and transformed when a batch asks for them.
    training_arguments.remove_unused_columns = False

    passphrase = read_passphrase(mark_arguments.passphrase_file)
    key_dir = Path(mark_arguments.key_dir or f"{training_arguments.output_dir.rstrip('/')}-key")
    if training_arguments.resume_from_checkpoint:
        identity: dict[str, Any] = {"key": WatermarkKey.load(key_dir, passphrase)}
    elif mark_arguments.owner is not None:
        identity = {"owner": Owner.load(mark_arguments.owner, passphrase)}
    else:
        identity = {"owner": Owner.create()}
    trainer_class = stack_trainers(*(AutoTrainer.for_method(method) for method in mark_arguments.methods))
    trainer = trainer_class(
        model=model,
        args=training_arguments,
        train_dataset=data["train"].with_transform(partial(apply, transform(True, **look))),
        eval_dataset=data["eval"].with_transform(partial(apply, transform(False, **look))),
        compute_metrics=accuracy,
        watermark=configs,
        **identity,
    )
    # Rank 0 made the key and everybody else got it from there, so only rank 0 writes it.
    if trainer.is_world_process_zero() and "owner" in identity:
        trainer.key.save(key_dir, passphrase)
        if mark_arguments.owner is None:
            identity["owner"].save(key_dir / "owner.json", passphrase)
    trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    trainer.save_model()
    trainer.log_metrics("eval", trainer.evaluate())
    if trainer.is_world_process_zero():
        print(trainer.evidence, *trainer.evidence.parts, f"key: {key_dir}", sep="\n")


if __name__ == "__main__":
    main()
