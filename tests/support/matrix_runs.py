"""A benchmark of seconds for the tests; run by a launcher, this file is one process of it."""

import sys
from pathlib import Path
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


if __name__ == "__main__":
    from hf_watermark.evaluation.matrix.processes import run_share

    main = run_share(Path(sys.argv[1]), lambda line: None)
    Path(sys.argv[1], f"main-{main}").touch()
