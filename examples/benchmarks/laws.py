"""
Whether p-values mean what they say: many random keys on fixed answers, for every method.

Answers are random, collapsed (always the same), or chosen by an adversary who knows the method but not the key. For each pair of answers and
key the method's own test gives a p-value; those at or below 1e-2 ... 1e-5 are counted and compared with what a valid test allows in 999
of 1,000 runs. Rows are written one by one, and a second start goes on where the first one stopped.

    python examples/benchmarks/laws.py --pairs 1000000 --output examples/benchmarks/results/laws.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binom
from tqdm.auto import tqdm

from hf_watermark import Owner, plan_key
from hf_watermark.configuration import WatermarkConfig
from hf_watermark.evaluation.digits import build_digits_model, load_digits_data
from hf_watermark.mapping import AutoVerifier
from hf_watermark.methods.certified import CertifiedConfig
from hf_watermark.methods.function_coupled import FunctionCoupledConfig
from hf_watermark.methods.greedy_residuals import GreedyResidualsConfig
from hf_watermark.methods.soft_label import CSPConfig, USPConfig
from hf_watermark.methods.watermas import WaterMASConfig
from hf_watermark.serialization import write_json_atomic
from hf_watermark.suspects import Suspect


THRESHOLDS = (1e-2, 1e-3, 1e-4, 1e-5)
KINDS = ("random", "collapsed", "adversarial")
CONFIGS: tuple[WatermarkConfig, ...] = (
    FunctionCoupledConfig(rules=24, images_per_rule=4),
    CertifiedConfig(),
    WaterMASConfig(subkeys=1, bits=128),
    CSPConfig(),
    USPConfig(),
    GreedyResidualsConfig(subkeys=1, bits=128, group_size=16),
)


def answers(kind: str, classes: int, seed: int) -> Any:
    """A function from images to probabilities that depends on no key."""
    generator = torch.Generator().manual_seed(seed)

    def answer(images: torch.Tensor) -> torch.Tensor:
        if kind == "collapsed":
            scores = torch.linspace(2.0, 0.0, classes).expand(len(images), -1)
        elif kind == "random":
            scores = torch.randn(len(images), classes, generator=generator)
        else:
            # One label for as many triggers as can hold it, and one image and class whose small probabilities outweigh all others.
            scores = torch.zeros(len(images), classes)
            scores[:, classes // 2] = 5.0
            scores[:: len(images) // 3 + 1, classes // 3] = -30.0
        return scores.double().softmax(dim=1)

    return answer


def weights(kind: str, model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A state dict of the model's shapes that depends on no key."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = tensor
        elif kind == "collapsed":
            state[name] = torch.ones_like(tensor)
        else:
            state[name] = torch.randn(tensor.shape, generator=generator)
            if kind == "adversarial" and tensor.ndim > 1:
                # All signs of a row alike, and a few giants.
                signs = torch.randn(len(tensor), *[1] * (tensor.ndim - 1), generator=generator).sign()
                state[name] = signs * state[name].abs() ** 9
    return state


def counts(config: WatermarkConfig, kind: str, pairs: int, seed: int) -> dict[str, Any]:
    """One row: how many of `pairs` random keys pass each threshold."""
    model, data = build_digits_model(seed=0), load_digits_data("train")
    key = plan_key(model, data, config, Owner.create())
    [claim] = key.claims()
    verifier: Any = AutoVerifier.for_method(config.method)(claim)
    place = claim.subkeys[0]
    if hasattr(verifier, "carriers"):
        state = weights(kind, model, seed)
        suspect = Suspect(kind, state, {name: tuple(tensor.shape) for name, tensor in state.items()})
    else:
        suspect = Suspect(kind, answer=answers(kind, verifier.classes, seed))
    observation = verifier.observe(suspect, place)
    scores = torch.empty(pairs)
    for number in tqdm(range(pairs), desc=f"{config.method}, {kind}", mininterval=30):
        scores[number] = verifier.score(observation, place.decoy()).log2_p
    found = []
    for threshold in THRESHOLDS:
        count = int((scores <= torch.tensor(threshold).log2()).sum())
        most = int(binom.ppf(0.999, pairs, threshold))
        found.append(
            {"p": threshold, "count": count, "nominal": threshold * pairs, "most": most, "holds": count <= most}
        )
    return {
        "method": config.method,
        "config": config.to_dict(),
        "answers": kind,
        "pairs": pairs,
        "smallest_log2_p": round(float(scores.min()), 2),
        "exceedances": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs", type=int, default=1_000_000, help="per method, shared by the three kinds of answers"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    done = {(row["method"], row["answers"]) for row in rows}
    for config in CONFIGS:
        for kind in KINDS:
            if (config.method, kind) in done:
                continue
            rows.append(counts(config, kind, -(-arguments.pairs // len(KINDS)), arguments.seed))
            write_json_atomic(arguments.output, {"schema": "hf-watermark/laws/v1", "rows": rows})
            print(json.dumps(rows[-1]["exceedances"]))


if __name__ == "__main__":
    main()
