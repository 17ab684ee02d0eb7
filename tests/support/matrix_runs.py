"""A benchmark of seconds for the tests; run as a script, a half of it by two workers, to be killed."""

import sys
from typing import Any


TINY: dict[str, Any] = {
    "name": "tiny",
    "seeds": [0],
    "backbones": {"tiny": {"preset": "tiny_resnet"}},
    "data": {
        "patterns": {
            "source": "synthetic",
            "train_images": 300,
            "test_images": 100,
            "training": {"epochs": 4, "learning_rate": 3e-3, "batch_size": 40},
        }
    },
    "methods": {
        "greedy": {"greedy_residuals": {"bits": 128, "subkeys": 4, "group_size": 16}},
        "stacked": {
            "greedy_residuals": {"bits": 128, "subkeys": 4, "group_size": 16},
            "usp": {"pool_per_class": 4},
        },
    },
    "attacks": [
        {"battery": "standard", "options": {"epochs": 0.5}, "only": ["finetune_lr_1x"], "images": 80},
        {"attacks": {"noise": {"name": "weight_noise"}, "prune": {"name": "magnitude_prune", "amount": 0.9}}},
    ],
}


# One method only: two models, five checks.
HALF = TINY | {"methods": {"greedy": TINY["methods"]["greedy"]}}
# What a rerun on the same machine may change; everything else is the same to the last digit.
CLOCKS = ("cpu_seconds", "seconds", "training_cpu_seconds", "hardware", "versions")


def without_clocks(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in CLOCKS}


if __name__ == "__main__":
    from hf_watermark.evaluation import parse_config, run_matrix

    run_matrix(parse_config(HALF), sys.argv[1], workers=2)
