"""
False positives: unmarked models x fresh keys for every method, decoy keys on a marked model, and seed search.

    python examples/benchmarks/null.py --output runs/null.json
    python examples/benchmarks/null.py --methods certified watermas usp csp --output runs/null_methods.json

Digits of scikit-learn; 24 small ResNets of different seeds, 40,000 keys per model for the two methods whose keys can be tried in bulk, 50 per model
(at least 1,000 pairs in all) for each of `--methods`, through the verifier itself. Counts at p <= 1e-2 ... 1e-5 are compared with the largest
count that a one-sided binomial test at 99.9 % still calls nominal. `hf-watermark calibrate` writes the same counts as a null table.
"""

import argparse
import json
import os
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom
from tqdm.auto import tqdm
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments, set_seed

from hf_watermark import (
    FunctionCoupledConfig,
    FunctionCoupledTrainer,
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    Owner,
    stack_trainers,
)
from hf_watermark.backbones import Carrier, canonical_rows, describe, own_rows
from hf_watermark.evaluation.digits import load_digits_data
from hf_watermark.evaluation.nulls import null_scores
from hf_watermark.forgery import search_keys
from hf_watermark.keys import SubKey
from hf_watermark.mapping import METHODS
from hf_watermark.methods.greedy_residuals.residuals import place_groups, read_residuals, signs
from hf_watermark.statistics import relabel_tails
from hf_watermark.training.triggers import LAYOUTS, draw_questions, draw_rules, fuse


LEVELS = (1e-2, 1e-3, 1e-4, 1e-5)
CLASSES, PER_CLASS = 10, 8
GREEDY = GreedyResidualsConfig(bits=256, subkeys=1, group_size=32)
# The net of this benchmark is too small for the default.
VERIFIER_FIELDS = {"greedy_residuals": {"bits": 256, "subkeys": 1, "group_size": 32}}
COUPLED = FunctionCoupledConfig(images_per_rule=8, pool_per_class=PER_CLASS, trigger_ratio=0.125)


def build_model(seed: int) -> ResNetForImageClassification:
    set_seed(seed)
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1]}
    return ResNetForImageClassification(ResNetConfig(num_channels=1, layer_type="basic", num_labels=CLASSES, **sizes))


def arguments(seed: int, epochs: float) -> TrainingArguments:
    return TrainingArguments(
        "runs/null",
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        learning_rate=4e-3,
        lr_scheduler_type="cosine",
        seed=seed,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
    )


def fresh() -> SubKey:
    return SubKey(0, 0, os.urandom(32))


class GreedyNull:
    """Matches of one key on many models at once: the groups are placed once and read from all of them."""

    def __init__(self, models: list[torch.nn.Module], carriers: list[Carrier] | None = None):
        state = models[0].state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        self.carriers = describe(shapes) if carriers is None else carriers
        self.rows = [
            own_rows(
                {carrier.role: canonical_rows(carrier, model.state_dict(), shapes) for carrier in self.carriers}, 0, 1
            )
            for model in models
        ]

    def matches(self, key: SubKey) -> list[int]:
        groups = place_groups(key, self.carriers, GREEDY.bits, GREEDY.group_size, 1)
        message = signs(key, GREEDY.bits)
        return [int((message * read_residuals(rows, groups, GREEDY.kept_fraction) > 0).sum()) for rows in self.rows]


class CoupledNull:
    """Answers of many models to every trigger that any key could ask of one pool, so that a key is a table look-up."""

    def __init__(self, models: list[torch.nn.Module], data: list[dict]):
        by_class = {
            label: [item["pixel_values"] for item in data if item["labels"] == label] for label in range(CLASSES)
        }
        self.images = torch.stack([image for label in range(CLASSES) for image in by_class[label][:PER_CLASS]])
        self.labels = np.repeat(np.arange(CLASSES), PER_CLASS)
        self.place = {
            combo: n for n, combo in enumerate((p, y) for p in combinations(range(CLASSES), 2) for y in range(LAYOUTS))
        }
        fill = self.images.amax(dim=(0, 2, 3))
        grid = torch.cartesian_prod(torch.arange(PER_CLASS), torch.arange(PER_CLASS))
        answers = []
        for (first, second), layout in tqdm(self.place, desc="answers to all triggers"):
            layouts = torch.full((len(grid),), layout)
            fused = fuse(
                self.images[first * PER_CLASS + grid[:, 0]],
                self.images[second * PER_CLASS + grid[:, 1]],
                layouts,
                fill,
            )
            with torch.no_grad():
                answers.append(
                    torch.stack([model.eval()(pixel_values=fused).logits.argmax(dim=1) for model in models])
                )
        # [models, combos, PER_CLASS, PER_CLASS]
        self.answers = torch.stack(answers, dim=1).reshape(len(models), len(self.place), PER_CLASS, PER_CLASS).numpy()

    def counts(self, key: SubKey) -> tuple[np.ndarray, np.ndarray]:
        """Matches of every possible target `[models, rules, candidates]`, and of the key's own targets in all `[models]`."""
        rules = draw_rules(key, COUPLED.rules, list(range(CLASSES)), CLASSES, LAYOUTS, 1)
        questions = draw_questions(key, rules, self.labels, COUPLED.images_per_rule) % PER_CLASS
        combos = np.array([self.place[rule.sources, rule.layout] for rule in rules])
        answers = self.answers[:, combos[:, None], questions[..., 0], questions[..., 1]]
        candidates = np.array([rule.candidates(CLASSES) for rule in rules])
        counts = (answers[..., None] == candidates[None, :, None, :]).sum(axis=2)
        own = [rule.candidates(CLASSES).index(rule.target) for rule in rules]
        return counts, counts[:, np.arange(len(rules)), own].sum(axis=1)


def table(p_values: np.ndarray) -> list[dict]:
    """Counts below each level beside the largest count that is still nominal at 99.9 %."""
    rows = []
    for level in LEVELS:
        count, limit = int((p_values <= level).sum()), int(binom.ppf(0.999, p_values.size, level))
        rows.append(
            {"level": level, "count": count, "expected": p_values.size * level, "limit": limit, "ok": count <= limit}
        )
    return rows


def greedy_p_values(null: GreedyNull, keys: int, description: str) -> np.ndarray:
    matches = np.array([null.matches(fresh()) for _ in tqdm(range(keys), desc=description)])
    return binom.sf(matches - 1, GREEDY.bits, 0.5)


def coupled_p_values(null: CoupledNull, keys: int, description: str) -> np.ndarray:
    p_values = []
    for start in tqdm(range(0, keys, 500), desc=description):
        drawn = [null.counts(fresh()) for _ in range(min(500, keys - start))]
        p_values.append(relabel_tails(*(np.concatenate(part) for part in zip(*drawn, strict=True))))
    return np.concatenate(p_values)


def verifier_p_values(method: str, models: list[torch.nn.Module], data: list[dict], keys: int) -> np.ndarray:
    """p-values of fresh keys of any method on all models, through its verifier; a quarter of a hundred share triggers or positions."""
    config = METHODS[method].load("Config")(**VERIFIER_FIELDS.get(method, {}))
    scores = [
        score for model in tqdm(models, desc=f"keys, {method}") for score in null_scores(config, model, data, keys)
    ]
    return np.exp2([log2_p for log2_p, _ in scores])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", type=int, default=24)
    parser.add_argument("--keys", type=int, default=40_000)
    parser.add_argument("--decoys", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument(
        "--methods", nargs="*", default=[], choices=list(METHODS), help="only these, through their verifiers"
    )
    parser.add_argument("--verifier-keys", type=int, default=50, help="keys per model for --methods")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    data, held_out = load_digits_data("train"), load_digits_data("test")
    models = []
    for seed in tqdm(range(options.models), desc="unmarked models"):
        trainer = Trainer(model=build_model(seed), args=arguments(seed, options.epochs), train_dataset=data)
        trainer.train()
        models.append(trainer.model.eval())
    record: dict = {"options": {name: value for name, value in vars(options).items() if not isinstance(value, Path)}}
    if options.methods:
        record["null"] = {
            method: table(verifier_p_values(method, models, data, options.verifier_keys)) for method in options.methods
        }
        save(record, options.output, begin)
        return
    greedy, coupled = GreedyNull(models), CoupledNull(models, held_out)
    record["null"] = {
        "greedy_residuals": table(greedy_p_values(greedy, options.keys, "keys, greedy")),
        "function_coupled": table(coupled_p_values(coupled, options.keys, "keys, rules")),
    }
    stacked = stack_trainers(GreedyResidualsTrainer, FunctionCoupledTrainer)
    marked = stacked(
        model=build_model(0),
        args=arguments(0, 30),
        train_dataset=data,
        watermark=[GREEDY, COUPLED],
        owner=Owner.create(),
    )
    marked.train()
    record["marked_model"] = {"log2_p": marked.evidence.log2_p, "verdict": str(marked.evidence.verdict)}
    greedy_marked, coupled_marked = GreedyNull([marked.model]), CoupledNull([marked.model], held_out)
    record["decoys_on_marked_model"] = {
        "greedy_residuals": table(greedy_p_values(greedy_marked, options.decoys, "decoys, greedy")),
        "function_coupled": table(coupled_p_values(coupled_marked, options.decoys, "decoys, rules")),
    }
    record["seed_search"] = {
        method: search_keys(models[0], marked.key, options.seeds, method, progress=True).details
        for method in ("greedy_residuals", "function_coupled")
    }
    save(record, options.output, begin)


def save(record: dict, output: Path, begin: float) -> None:
    record["seconds"] = round(time.perf_counter() - begin, 1)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1))
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
