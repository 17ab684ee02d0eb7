"""
Chooses how rules are taught in a fine-tuning of a pretrained net, without the test set: every setting is trained on 10,000 training images of CIFAR-10
for 3 epochs, and judged on 4,000 others.

    python examples/benchmarks/choose_pretrained.py --cifar10 FOLDER --output runs/choice_pretrained.json
    python examples/benchmarks/choose_pretrained.py --cifar10 FOLDER --long --output runs/choice_pretrained.json

The rule, written down before the first run: of the settings that cost at most 0.6 points of held-out accuracy in the mean over the seeds, or of the cheapest
two where fewer than two do, the one with the smallest mean log2 p after fine-tuning at the whole rate with a cosine, as in `pretrained.py`.

`--long` takes 40,000 images, of which the default shows four hundred fused ones of a rule as well, so few beside a batch. There the rule, written down before
the first run: of the settings with log2 p of -96 or less in the mean, and of -64 or less after that fine-tuning, or of all where none has, the most accurate.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from alignment import Results, Row
from data import load_cifar10
from pretrained import EPOCHS, IMAGES, RATE, Enlarged, Mirrored, accuracy, trained

from hf_watermark import FunctionCoupledConfig, verify
from hf_watermark.attacks import FineTune


SHORT: dict[str, Any] = {"trigger_ratio": 0.64, "trigger_weight": 0.5, "mirrored": True, "auxiliary": True}
WHITE: dict[str, Any] = {"canvas": "white"}
HEAVY: dict[str, Any] = {"trigger_ratio": 0.75, "trigger_weight": 2.0, "mirrored": True, "auxiliary": True}
SETTINGS: tuple[dict[str, Any], ...] = (
    {},  # apart from a quarter on
    {**SHORT, "trigger_weight": 0.3, "apart_from": 0.25},
    WHITE,
    {**WHITE, **HEAVY, "apart_from": 0.0},
    {**WHITE, **HEAVY, "trigger_ratio": 0.5, "apart_from": 0.6},
    {**WHITE, **SHORT, "apart_from": 0.6},
    {**WHITE, **SHORT, "apart_from": 0.8},
)
TAUGHT: dict[str, Any] = {"mirrored": True, "auxiliary": True, "apart_from": 0.25}
LONG_SETTINGS: tuple[dict[str, Any], ...] = (
    {**TAUGHT, "trigger_ratio": 0.16, "trigger_weight": 0.16},  # each fused image as one of the batch
    {**TAUGHT, "trigger_ratio": 0.25, "trigger_weight": 0.25},
    {**TAUGHT, "trigger_ratio": 0.16, "trigger_weight": 0.5},  # half as heavy as the task, as in the short run
)
LONG_IMAGES = 40_000
ATTACK = FineTune(learning_rate=RATE, epochs=3, optimizer="adamw", batch_size=64, schedule="cosine")
ALLOWED_LOSS = 0.006


def measure(config: FunctionCoupledConfig, seed: int, data: Enlarged, held_out: Enlarged, again: Enlarged) -> Row:
    trainer: Any = trained(config, seed, EPOCHS, data)
    model, key = trainer.model.eval(), trainer.key
    attacked = ATTACK(model, again)
    return {
        "accuracy": accuracy(model, held_out),
        "log2_p": trainer.evidence.log2_p,
        "mirrored": verify(Mirrored(model), key).log2_p,
        "attacked": verify(attacked, key).log2_p,
        "attacked_accuracy": accuracy(attacked, held_out),
        "readings": [[item.step, item.log2_p, item.right] for item in trainer.embeddings[0].feedback.readings],
    }


def choice(rows: dict[str, Row], seeds: list[int]) -> str:
    """The rule above."""
    settings = [json.dumps(setting) for setting in SETTINGS]
    losses = {
        name: mean(
            rows[f"twin | seed {seed}"]["accuracy"] - rows[f"{name} | seed {seed}"]["accuracy"] for seed in seeds
        )
        for name in settings
    }
    cheap = [name for name in settings if losses[name] <= ALLOWED_LOSS]
    if len(cheap) < 2:
        cheap = sorted(settings, key=losses.__getitem__)[:2]
    return min(cheap, key=lambda name: mean(rows[f"{name} | seed {seed}"]["attacked"] for seed in seeds))


def long_choice(rows: dict[str, Row], seeds: list[int]) -> str:
    """The rule of `--long`."""

    def average(name: str, what: str) -> float:
        return mean(rows[f"{name} | seed {seed}"][what] for seed in seeds)

    settings = [json.dumps(setting) for setting in LONG_SETTINGS]
    strong = [name for name in settings if average(name, "log2_p") <= -96 and average(name, "attacked") <= -64]
    return max(strong or settings, key=lambda name: average(name, "accuracy"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--setting", type=int, choices=range(len(LONG_SETTINGS)), help="of `--long`, this one only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    whole, results, seeds = load_cifar10(options.cifar10, "train"), Results(options.output), options.seeds
    data = Enlarged.part(whole, 0, LONG_IMAGES if options.long else IMAGES, augment=True)
    held_out = Enlarged.part(whole, 40_000, 44_000)
    first = 44_000 if options.long else 30_000
    again = Enlarged.part(whole, first, first + 2000, augment=True)

    def measure_all(section: str, settings: Sequence[dict[str, Any]], **fields: Any) -> None:
        for seed in seeds:
            for setting in settings:
                config = FunctionCoupledConfig(**setting, **fields)
                results.row(
                    section,
                    f"{json.dumps(setting)} | seed {seed}",
                    lambda c=config, s=seed: measure(c, s, data, held_out, again),
                )

    if options.long:
        chosen = LONG_SETTINGS if options.setting is None else [LONG_SETTINGS[options.setting]]
        measure_all("long", chosen)
        if options.setting is None:
            results.row("chosen", "long", lambda: {"setting": long_choice(results.record["long"], seeds)})
        return
    for seed in seeds:
        results.row(
            "settings",
            f"twin | seed {seed}",
            lambda s=seed: {"accuracy": accuracy(trained(None, s, EPOCHS, data).model, held_out)},
        )
    measure_all("settings", SETTINGS, images_per_rule=10)  # as the rows were measured
    results.row("chosen", "setting", lambda: {"setting": choice(results.record["settings"], seeds)})


if __name__ == "__main__":
    main()
