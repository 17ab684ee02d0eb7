"""
Digits, three seeds: strength of both marks, fidelity against the twin, and how far the carriers' weight distribution moved.

    python examples/benchmarks/digits.py --output runs/digits.json

Only scikit-learn's handwritten digits are needed. The distance of the weight distributions is Kolmogorov-Smirnov, marked against twin,
beside the same distance between twins of different seeds.
"""

import argparse
import json
import time
from itertools import combinations
from pathlib import Path

import torch
from recipes import arguments, build_model, train_twin
from scipy.stats import ks_2samp

from hf_watermark import (
    FunctionCoupledConfig,
    FunctionCoupledTrainer,
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    Owner,
    stack_trainers,
)
from hf_watermark.backbones import find_carriers
from hf_watermark.evaluation import accuracy, method_summary
from hf_watermark.evaluation.digits import load_digits_data


def carrier_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    _, found = find_carriers({name: tuple(tensor.shape) for name, tensor in state.items()})
    return {role: state[item.weight].flatten() for role, item in found.items()}


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    return {
        role: {
            "ks": round(float(ks_2samp(first[role].numpy(), second[role].numpy()).statistic), 4),
            "std_ratio": round(float(first[role].std() / second[role].std()), 4),
        }
        for role in first
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--trigger-ratio", type=float, default=0.125)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train, test = load_digits_data("train"), load_digits_data("test")
    stacked = stack_trainers(GreedyResidualsTrainer, FunctionCoupledTrainer)
    record: dict = {
        "options": {name: value for name, value in vars(options).items() if not isinstance(value, Path)},
        "seeds": [],
    }
    twins = []
    for seed in range(options.seeds):
        begin = time.perf_counter()
        twin = train_twin("digits", seed, options.epochs, "runs/digits", train)
        middle = time.perf_counter()
        marked = stacked(
            model=build_model("digits", seed),
            args=arguments("digits", seed, options.epochs, "runs/digits"),
            train_dataset=train,
            watermark=[
                GreedyResidualsConfig(),
                FunctionCoupledConfig(trigger_ratio=options.trigger_ratio, images_per_rule=10),
            ],
            owner=Owner.create(),
        )
        marked.train()
        twins.append(carrier_weights(twin.model))
        row = {
            "seed": seed,
            "twin_accuracy": round(accuracy(twin.model, test), 4),
            "marked_accuracy": round(accuracy(marked.model, test), 4),
            "methods": method_summary(marked.evidence),
            "twin_under_the_key": method_summary(marked.verify(twin.model)),
            "weights_marked_against_twin": distance(carrier_weights(marked.model), twins[-1]),
            "seconds": {"twin": round(middle - begin, 1), "marked": round(time.perf_counter() - middle, 1)},
        }
        row["fidelity"] = round(row["marked_accuracy"] - row["twin_accuracy"], 4)
        record["seeds"].append(row)
        print(json.dumps(row))
    fidelities = [row["fidelity"] for row in record["seeds"]]
    record["mean_fidelity"] = round(sum(fidelities) / len(fidelities), 4)
    record["weights_twin_against_twin"] = [distance(a, b) for a, b in combinations(twins, 2)]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
