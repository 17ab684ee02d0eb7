"""
Chooses how rules are taught in a short fine-tuning of a pretrained net, without the test set: every setting is trained on 10,000 training images of
CIFAR-10 and judged on 4,000 others.

    python examples/benchmarks/choose_pretrained.py --cifar10 FOLDER --output runs/choice_pretrained.json

The rule, written down before the first run: of the settings that cost at most 0.6 points of held-out accuracy in the mean over the seeds, or of the cheapest
two where fewer than two do, the one with the smallest mean log2 p after fine-tuning at the whole rate with a cosine, as in `pretrained.py`.
"""

import argparse
import json
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
ATTACK = FineTune(learning_rate=RATE, epochs=3, optimizer="adamw", batch_size=64, schedule="cosine")
ALLOWED_LOSS = 0.006


def measure(setting: dict[str, Any], seed: int, data: Enlarged, held_out: Enlarged, again: Enlarged) -> Row:
    # Ten questions a rule, as the rows were measured.
    trainer: Any = trained(FunctionCoupledConfig(images_per_rule=10, **setting), seed, EPOCHS, data)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    whole = load_cifar10(options.cifar10, "train")
    data, held_out = Enlarged.part(whole, 0, IMAGES, augment=True), Enlarged.part(whole, 40_000, 44_000)
    again = Enlarged.part(whole, 30_000, 32_000, augment=True)
    results = Results(options.output)
    for seed in options.seeds:
        results.row(
            "settings",
            f"twin | seed {seed}",
            lambda s=seed: {"accuracy": accuracy(trained(None, s, EPOCHS, data).model, held_out)},
        )
        for setting in SETTINGS:
            results.row(
                "settings",
                f"{json.dumps(setting)} | seed {seed}",
                lambda c=setting, s=seed: measure(c, s, data, held_out, again),
            )
    results.row("chosen", "setting", lambda: {"setting": choice(results.record["settings"], options.seeds)})


if __name__ == "__main__":
    main()
