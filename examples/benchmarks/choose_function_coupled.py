"""
Chooses the CIFAR-10 setting of `function_coupled` without the test set: every setting is trained on 45,000 training images and judged on
the other 5,000.

    python examples/benchmarks/choose_function_coupled.py --data FOLDER --seeds 10 11 --output runs/choice.json --folder runs/choice

The rule, written down before the first run, is that of `choose_soft_label.py`: of the settings that cost at most 0.59 points of
validation accuracy in the mean over the seeds, the one with the smallest mean log2 p after fine-tuning at a tenth of the training rate
(here as in the matrix: three epochs on 5,000 images). Two processes may share `--folder` if each has its own seed; the last command with
all seeds only reads what they left and chooses.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from choose_soft_label import ALLOWED_LOSS, HELD_OUT, choose
from recipes import LEARNING_RATES, arguments, build_model, load_data, train_twin
from transformers.utils import logging

from hf_watermark import FunctionCoupledConfig, FunctionCoupledTrainer, Owner, verify
from hf_watermark.attacks import FineTune
from hf_watermark.evaluation import accuracy


SETTINGS: tuple[dict[str, Any], ...] = (
    {"trigger_ratio": 0.125},
    {"trigger_ratio": 0.25},
    {"trigger_ratio": 0.5},
    {"trigger_ratio": 0.25, "masking": "none"},
    {"trigger_ratio": 0.5, "masking": "none"},
)
ATTACK = FineTune(learning_rate=0.1 * LEARNING_RATES["cifar10"], epochs=3, optimizer="adamw")
ATTACK_IMAGES = 5_000


def measure(options: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Validation accuracy of the twin, and of every setting with what its key reads before and after the attack."""
    record: Path = options.folder / f"seed{seed}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(record.read_text()) if record.exists() else {}
    train, held_out = load_data("cifar10", options.data, held_out=HELD_OUT)
    scratch = options.folder / f"scratch{seed}"
    for setting in ({}, *SETTINGS):
        name = json.dumps(setting)
        if name not in rows:
            if setting:
                rows[name] = marked_row(setting, seed, options.epochs, scratch, train, held_out)
            else:
                twin = train_twin("cifar10", seed, options.epochs, scratch, train).model
                rows[name] = {"accuracy": accuracy(twin, held_out)}
            record.write_text(json.dumps(rows, indent=1) + "\n")
            print(seed, name, json.dumps(rows[name]), flush=True)
    return rows


def marked_row(
    setting: dict[str, Any], seed: int, epochs: float, scratch: Path, train: Any, held_out: Any
) -> dict[str, float]:
    trainer = FunctionCoupledTrainer(
        model=build_model("cifar10", seed),
        args=arguments("cifar10", seed, epochs, scratch),
        train_dataset=train,
        watermark=FunctionCoupledConfig(images_per_rule=10, target_log2_p=0.0, **setting),
        owner=Owner.create(),
    )
    trainer.train()
    marked, attacked = trainer.model.eval(), ATTACK(trainer.model, train.first(ATTACK_IMAGES))
    row = {"accuracy": accuracy(marked, held_out), "attacked accuracy": accuracy(attacked, held_out)}
    row |= {"log2_p": verify(marked, trainer.key).log2_p, "attacked log2_p": verify(attacked, trainer.key).log2_p}
    return {field: round(value, 4) for field, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/choice"), help="what each seed measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11])
    parser.add_argument("--epochs", type=float, default=6, help="as in the matrix")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    seeds = {seed: measure(options, seed) for seed in options.seeds}
    rows = []
    for setting in SETTINGS:
        own = {seed: found[json.dumps(setting)] for seed, found in seeds.items()}
        losses = [found["{}"]["accuracy"] - own[seed]["accuracy"] for seed, found in seeds.items()]
        strength = {
            f"mean {field}": round(mean(row[field] for row in own.values()), 2)
            for field in ("log2_p", "attacked log2_p")
        }
        rows.append({"setting": setting, "mean loss": round(mean(losses), 5), **strength, "seeds": own})
    record = {"epochs": options.epochs, "twins": {seed: found["{}"]["accuracy"] for seed, found in seeds.items()}}
    record |= {"settings": rows, "allowed loss": ALLOWED_LOSS, "chosen": choose(rows)}
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["chosen"]))


if __name__ == "__main__":
    main()
