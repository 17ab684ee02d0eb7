"""
The two marked nets whose files `formats.py` stores in every way: trained on the digits with function-coupled rules, then written into with greedy
residuals. They are made once and kept.

    python examples/benchmarks/format_nets.py --folder runs/format_nets
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recipes import arguments
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification, set_seed

from hf_watermark import (
    FunctionCoupledConfig,
    FunctionCoupledTrainer,
    GreedyResidualsConfig,
    Owner,
    WatermarkKey,
    mark_model,
)
from hf_watermark.evaluation.digits import build_digits_model, load_digits_data


VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "hidden_size": 128, "num_hidden_layers": 4}
VIT |= {"num_attention_heads": 4, "intermediate_size": 256, "num_channels": 1, "num_labels": 10}
EPOCHS, RATES = {"resnet": 60, "vit": 80}, {"resnet": 4e-3, "vit": 2e-3}
MARKS = {"resnet": GreedyResidualsConfig(subkeys=2), "vit": GreedyResidualsConfig(bits=512, group_size=32, subkeys=2)}


@dataclass(frozen=True)
class MarkedNet:
    """
    Args:
        start, model (`PreTrainedModel`): Before and after the mark was written.
        keys (`dict[str, WatermarkKey]`): By `white` and `black`: of the weights and of the answers.
    """

    start: PreTrainedModel
    model: PreTrainedModel
    keys: dict[str, WatermarkKey]


def build(name: str) -> PreTrainedModel:
    set_seed(0)
    return build_digits_model(0) if name == "resnet" else ViTForImageClassification(ViTConfig(**VIT))


def make(name: str, folder: Path) -> None:
    owner, train = Owner.create(), load_digits_data("train")
    settings = arguments("digits", 0, EPOCHS[name], folder / name / "scratch")
    settings.learning_rate = RATES[name]
    watermark = FunctionCoupledConfig(trigger_ratio=0.25, images_per_rule=10)
    trainer = FunctionCoupledTrainer(
        model=build(name), args=settings, train_dataset=train, watermark=watermark, owner=owner
    )
    trainer.train()
    start: Any = trainer.model
    images = torch.stack([item["pixel_values"] for item in train[:128]])
    model, key = mark_model(start.eval(), MARKS[name], owner, images=images, keep=[trainer.key])
    for part, net in (("start", start), ("model", model)):
        net.save_pretrained(folder / name / part)
    trainer.key.save(folder / name / "black")
    key.save(folder / name / "white")


def load(name: str, folder: Path) -> MarkedNet:
    if not (folder / name / "white").exists():
        make(name, folder)
    kind = type(build(name))
    start, model = (
        kind.from_pretrained(folder / name / part, local_files_only=True).eval() for part in ("start", "model")
    )
    return MarkedNet(start, model, {part: WatermarkKey.load(folder / name / part) for part in ("white", "black")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/format_nets"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in MARKS:
        load(name, options.folder)


if __name__ == "__main__":
    main()
