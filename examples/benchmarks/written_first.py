"""
Greedy residuals that are written before the first step and then kept, against those that the hinge has to bring in.

    python examples/benchmarks/written_first.py --data FOLDER --output runs/written_first.json

Alternating, so that both see the same load of the machine. `full` is the recipe of the digits; `short` a tenth of its epochs from scratch; `fine-tuned` two
epochs at a hundredth and a tenth of its rate from the finished twin; CIFAR-10 is a short run on 10,000 images.
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from alignment import Results, Row
from recipes import LEARNING_RATES, arguments, build_model, load_data, train_twin

from hf_watermark import GreedyResidualsConfig, GreedyResidualsTrainer, Owner
from hf_watermark.evaluation.survival import accuracy


WAYS = {"hinge": False, "written first": True}
# Epochs, share of the recipe's rate, whether from the finished twin.
DIGITS = {
    "digits, full": (30, 1.0, False),
    "digits, short": (3, 1.0, False),
    "digits, fine-tuned at 0.1 x": (2, 0.1, True),
    "digits, fine-tuned at 0.01 x": (2, 0.01, True),
}
CIFAR10 = {"CIFAR-10, short": (3, 1.0, False)}


def run(task: str, recipe: tuple[float, float, bool], seed: int, first: bool, twin: Any, data: tuple[Any, Any]) -> Row:
    epochs, share, finished = recipe
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments(task, seed, epochs, folder)
        settings.learning_rate = share * LEARNING_RATES[task]
        trainer = GreedyResidualsTrainer(
            model=copy.deepcopy(twin) if finished else build_model(task, seed),
            args=settings,
            train_dataset=data[0],
            watermark=GreedyResidualsConfig(written_first=first),
            owner=Owner.create(),
        )
        start = time.process_time()
        trainer.train()
    return {
        "accuracy": accuracy(trainer.model, data[1]),
        "match_rate": trainer.evidence.rate,
        "log2_p": trainer.evidence.log2_p,
        "processor_seconds": time.process_time() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/written_first.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.output)
    digits = load_data("digits", None)
    cifar10 = None if options.data is None else load_data("cifar10", options.data, 10_000)
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            twin = train_twin("digits", seed, 30, folder, digits[0])
        results.row("twin", f"digits, seed {seed}", lambda t=twin: {"accuracy": accuracy(t.model, digits[1])})
        for name, recipe in (DIGITS | (CIFAR10 if cifar10 else {})).items():
            task, data = ("cifar10", cifar10) if name in CIFAR10 else ("digits", digits)
            for way, first in WAYS.items():
                label = f"{name}, {way} | seed {seed}"
                results.row("runs", label, lambda t=task, r=recipe, f=first, d=data: run(t, r, seed, f, twin.model, d))  # noqa: B023


if __name__ == "__main__":
    main()
