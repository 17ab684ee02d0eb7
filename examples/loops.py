"""What the loops of this folder share: handwritten digits, options, and what is left behind."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_watermark import Watermark
from hf_watermark.backbones import answers_of
from hf_watermark.evaluation.digits import load_digits_data
from hf_watermark.mapping import METHODS


BATCH = 64
RATE = 4e-3


def options(description: str | None, **further: dict[str, Any]) -> argparse.Namespace:
    """The options of a script, and `further` ones of its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["greedy_residuals"])
    parser.add_argument("--output", type=Path, default=Path("runs/loop"), help="model; the key goes to OUTPUT-key")
    parser.add_argument("--epochs", type=int, default=4)
    for name, settings in further.items():
        parser.add_argument(f"--{name}", **settings)
    return parser.parse_args()


def pairs(split: str) -> list[tuple[torch.Tensor, int]]:
    """The digits as the loops outside of transformers have them: image and label."""
    return [(item["pixel_values"], item["labels"]) for item in load_digits_data(split)]  # type: ignore[arg-type]


def finish(watermark: Watermark, model: nn.Module, output: Path, save: Callable[[Path], Any]) -> None:
    """Saves the model by `save`, its public files and its key, and prints what can be read of the mark in the saved files."""
    test = pairs("test")
    right = answers_of(model, torch.stack([image for image, _ in test])).argmax(dim=1).cpu()
    print(f"accuracy: {(right == torch.tensor([label for _, label in test])).float().mean():.3f}")
    output.mkdir(parents=True, exist_ok=True)
    save(output)
    watermark.key.save(f"{output}-key")
    print(watermark.save_public_files(output), f"key: {output}-key", sep="\n")
