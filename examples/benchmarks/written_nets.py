"""
Small nets of five families, trained briefly on CIFAR-10, that marks are written into; each is trained once and kept in a folder.

    python examples/benchmarks/written_nets.py --data ../shared/data/cifar10 --folder runs/written_nets
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from data import load_cifar10
from recipes import arguments, build_model
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hf_watermark import GreedyResidualsConfig, GreedyResidualsTrainer, Owner, WatermarkKey


EPOCHS = {"resnet": 3, "convnext": 1, "vit": 1, "swin": 1, "mobilenet": 1}
SEED = 0


def build(family: str) -> PreTrainedModel:
    set_seed(SEED)
    small: dict[str, Any] = {"num_labels": 10}
    if family == "resnet":
        return build_model("cifar10", SEED)
    if family == "mobilenet":
        mobilenet: dict[str, Any] = {
            "depth_multiplier": 0.5,
            "image_size": 32,
            "output_stride": 32,
            "finegrained_output": False,
        }
        mobilenet["classifier_dropout_prob"] = 0.0
        return MobileNetV2ForImageClassification(MobileNetV2Config(**mobilenet, **small))
    if family == "vit":
        vit = {"image_size": 32, "patch_size": 4, "num_attention_heads": 4, "num_hidden_layers": 4}
        return ViTForImageClassification(ViTConfig(**vit, hidden_size=96, intermediate_size=192, **small))
    if family == "swin":
        swin = {"image_size": 32, "patch_size": 2, "embed_dim": 32, "depths": [1, 3], "num_heads": [2, 4]}
        return SwinForImageClassification(SwinConfig(**swin, window_size=4, drop_path_rate=0.0, **small))
    convnext = {"patch_size": 2, "hidden_sizes": [32, 64], "depths": [1, 3], "num_stages": 2, "drop_path_rate": 0.0}
    return ConvNextForImageClassification(ConvNextConfig(**convnext, layer_scale_init_value=1.0, **small))


def load(folder: Path, family: str) -> PreTrainedModel:
    return AutoModelForImageClassification.from_pretrained(folder / family, local_files_only=True).eval()


def load_trained_mark(folder: Path, family: str) -> tuple[PreTrainedModel, WatermarkKey]:
    """The net of the same recipe into which `GreedyResidualsTrainer` put the mark."""
    return load(folder, f"{family}-marked"), WatermarkKey.load(folder / f"{family}-key")


def train(folder: Path, family: str, data: Any, marked: bool = False) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        given: dict[str, Any] = {
            "model": build(family),
            "args": arguments("cifar10", SEED, EPOCHS[family], scratch),
            "train_dataset": data,
        }
        if marked:
            trainer = GreedyResidualsTrainer(**given, watermark=GreedyResidualsConfig(subkeys=1), owner=Owner.create())
        else:
            trainer = Trainer(**given)
            trainer.model_accepts_loss_kwargs = False
        trainer.train()
    if marked:
        trainer.key.save(folder / f"{family}-key")
    trainer.model.save_pretrained(folder / (f"{family}-marked" if marked else family))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/written_nets"))
    parser.add_argument("--families", nargs="+", choices=EPOCHS, default=list(EPOCHS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    data = load_cifar10(options.data, "train")
    for family in options.families:
        if not (options.folder / family).exists():
            train(options.folder, family, data)
        if family == "resnet" and not (options.folder / "resnet-marked").exists():
            train(options.folder, family, data, marked=True)


if __name__ == "__main__":
    main()
