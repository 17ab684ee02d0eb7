"""
Soft-label watermark `usp` on one task: fidelity and calibration, paired detector, answers through an API, null models, random keys, attacks.

    python examples/benchmarks/soft_label.py --task digits --seed 0 --output runs/soft_label.json --folder runs/soft_label
    python examples/benchmarks/soft_label.py --task digits --seed 1 --sections fidelity,detector,answers --output runs/soft_label.json

The JSON holds all seeds and is rewritten after every row; a row that is there is not measured again, so an interrupted run goes on where it
stopped (one process per JSON and folder). Models and the secret keys stay in `--folder`. Null models are shared by all seeds.

What the numbers mean. The marked model is trained without the query images, the twin with them, on cores that others may use too. Attackers never hold a query image:
their images are the marked model's training images, or photographs, or the half that the marked model of its own row ("half") was not
trained on. `cpu_seconds` are seconds of one core, whatever else the machine did.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recipes import EPOCHS, LEARNING_RATES
from scipy import stats
from soft_label_run import NULL_KINDS, Row, Run, answers_of, batch_size, quality, reading
from torch.utils.data import Subset
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.utils import logging

from hf_watermark import WatermarkKey, verify_sequentially
from hf_watermark.attacks import Attack, Distill, FineTune, MagnitudePrune, UniformQuantize
from hf_watermark.keys import SubKey
from hf_watermark.methods.soft_label import (
    USPDetector,
    USPVerifier,
    train_detector,
)
from hf_watermark.training.triggers.families import photograph_crops


SECTIONS = ("fidelity", "nulls", "detector", "answers", "keys", "survival")
DISTILL_EPOCHS = {"digits": 30, "cifar10": 4}
# Answers that the detector may judge as one.
TOGETHER = (4, 16)
LEVELS = (0.05, 1e-2, 1e-3, 1e-4, 1e-6)


def counts_below(values: list[float]) -> Row:
    below = {f"below_{level:g}": sum(value <= math.log2(level) for value in values) for level in LEVELS}
    return {"tests": len(values), "smallest_log2_p": round(min(values), 2), **below}


def summary(seeds: Row) -> Row:
    """Means over seeds with half the width of their 95 % t interval."""
    wanted = {
        "accuracy gap": ("fidelity", "marked minus twin", "accuracy"),
        "worst-class gap": ("fidelity", "marked minus twin", "worst_class"),
        "ECE gap": ("fidelity", "marked minus twin", "ece"),
        "log2 p": ("fidelity", "marked", "log2_p"),
        "time of training, ratio": ("fidelity", "cost", "ratio"),
        "watermark accuracy of the detector": ("detector", "marked against null models", "watermark_accuracy"),
    }
    result = {}
    for label, (section, name, number) in wanted.items():
        values = [rows[section][name][number] for rows in seeds.values() if name in rows.get(section, {})]
        if len(values) > 1:
            width = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
            result[label] = {"mean": round(sum(values) / len(values), 4), "half_width": round(float(width), 4)}
            result[label]["seeds"] = len(values)
    return result


# --- Sections ---------------------------------------------------------------------------------------------------------


def fidelity(run: Run) -> None:
    (marked, key), twin = run.marked(), run.twin()
    for name, model in {"twin": twin, "marked": marked}.items():
        run.row(
            "fidelity",
            name,
            lambda model=model: quality(answers_of(model, run.images), run.labels) | reading(key, model, decoys=100),
        )
    run.row("fidelity", "sequential, level N", lambda: sequential(key, marked))
    rows = run.rows["fidelity"]
    gaps = {name: round(rows["marked"][name] - rows["twin"][name], 4) for name in ("accuracy", "worst_class", "ece")}
    run.row("fidelity", "marked minus twin", lambda: gaps)
    if not {"twin", "marked"} <= run.rows["training"].keys():
        return  # a model that was brought along has no time
    size = batch_size(run.task)
    per_step = {
        # The marked model's with the making of its key and of the reference; `overhead.py` measures steps alone.
        name: 1000 * run.rows["training"][name]["cpu_seconds"] / run.epochs / math.ceil(len(data) / size)
        for name, data in {"twin": run.train, "marked": run.allowed(key)}.items()
    }
    costs = {f"{name}_ms_per_step": round(value, 1) for name, value in per_step.items()}
    run.row("fidelity", "cost", lambda: costs | {"ratio": round(per_step["marked"] / per_step["twin"], 3)})


def sequential(key: WatermarkKey, model: PreTrainedModel) -> Row:
    result = verify_sequentially(model, key)
    return {
        "log2_p": round(result.evidence.log2_p, 1),
        "queries": result.queries,
        "budget": len(key.pool["usp.images"]),
    }


def nulls(run: Run) -> None:
    _, key = run.marked()

    def measure(number: int) -> Row:
        kind, model = run.null(number)
        row = quality(answers_of(model, run.images), run.labels) | reading(key, model)
        return {"kind": kind} | {name: row[name] for name in ("accuracy", "ece", "log2_p")}

    rows = [
        run.row("nulls", str(number), lambda number=number: measure(number)) for number in range(run.options.nulls)
    ]
    accuracies = [row["accuracy"] for row in rows]
    summary = counts_below([row["log2_p"] for row in rows]) | {"least_accuracy": min(accuracies)}
    run.row("nulls", f"all {len(rows)}", lambda: summary)


def detector(run: Run) -> None:
    """Trained on the first two null models of each kind, judged on the others; all answers judged are to test images."""
    (marked, key), seen = run.marked(), 2 * len(NULL_KINDS)
    data, folder = run.allowed(key), run.options.folder / f"detector{run.seed}"

    def fit() -> Row:
        images = torch.stack([data[row]["pixel_values"] for row in range(min(5000, len(data)))])
        clean = [answers_of(run.null(number)[1], images) for number in range(seen)]
        begin = time.process_time()
        template, given = USPVerifier(key.claims()[0]).template(), [answers_of(marked, images)]
        train_detector(template, images, given, clean=clean, seed=run.seed).save_pretrained(folder)
        return {"null_models": seen, "cpu_seconds": round(time.process_time() - begin, 1)}

    run.row("detector", "training", fit)
    trained = USPDetector.from_pretrained(folder)

    def share(model: PreTrainedModel, together: int = 1) -> float:
        return round(float(trained.detects(answers_of(model, run.images), run.images, together).double().mean()), 4)

    def judge(together: int) -> Row:
        silent: dict[str, list[float]] = {}
        for number in range(seen, run.options.nulls):
            kind, model = run.null(number)
            silent.setdefault(kind, []).append(1 - share(model, together))
        every = [value for values in silent.values() for value in values]
        hit, quiet = share(marked, together), sum(every) / len(every)
        by_kind = {kind: round(sum(values) / len(values), 4) for kind, values in silent.items()}
        return {
            "watermark_accuracy": round((hit + quiet) / 2, 4),
            "marked_detected": hit,
            "null_not_detected": round(quiet, 4),
            "least_null_not_detected": round(min(every), 4),
            "by_kind": by_kind,
            "null_models": len(every),
            "queries_per_model": len(run.labels),
        }

    run.row("detector", "marked against null models", lambda: judge(1))
    for together in TOGETHER:
        run.row("detector", f"{together} answers judged together", lambda together=together: judge(together))
    run.row("detector", "twin", lambda: {"not_detected": round(1 - share(run.twin()), 4)})
    for folder_of in sorted(run.options.folder.glob("marked[0-9]")):
        other = AutoModelForImageClassification.from_pretrained(folder_of)
        if folder_of.name != f"marked{run.seed}":
            for together in (1, *TOGETHER):
                run.row(
                    "detector",
                    f"{folder_of.name}, another key, {together} judged together",
                    lambda other=other, together=together: {"not_detected": round(1 - share(other, together), 4)},
                )


def answer_variants(classes: int) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """What an API may do to probabilities `[n, classes]`."""

    def two_decimals(answers: torch.Tensor) -> torch.Tensor:
        return (answers * 100).round() / 100

    def top(answers: torch.Tensor) -> torch.Tensor:
        values, places = answers.topk(min(5, classes), dim=1)
        return torch.zeros_like(answers).scatter(1, places, values)

    return {
        "full": lambda answers: answers,
        "2 decimals": two_decimals,
        "top 5": top,
        "top 5, 2 decimals": lambda answers: two_decimals(top(answers)),
        "temperature 2": lambda answers: (answers.clamp_min(1e-300).log() / 2).softmax(dim=1),
    }


def answers(run: Run) -> None:
    marked, key = run.marked()
    for label, change in answer_variants(marked.config.num_labels).items():
        run.row(
            "answers",
            label,
            lambda change=change: reading(key, lambda images: change(answers_of(marked, images)), decoys=100),
        )


def keys(run: Run) -> None:
    """Random keys: other signs on the same answers."""
    marked, key = run.marked()
    [claim] = key.claims()
    verifier, subkey = USPVerifier(claim), claim.subkeys[0]

    def scores(model: PreTrainedModel, count: int) -> list[float]:
        observed = verifier.read(answers_of(model, verifier.images))
        return [verifier.score(observed, subkey.decoy()).log2_p for _ in range(count)]

    count = run.options.keys
    run.row("keys", "marked model, random keys", lambda: counts_below(scores(marked, count)))

    def on_nulls() -> Row:
        models = [run.null(number)[1] for number in range(run.options.nulls)]
        values = [value for model in models for value in scores(model, count // 10)]
        return {"null_models": len(models), **counts_below(values)}

    run.row("keys", "null models, random keys", on_nulls)


# --- Attacks ----------------------------------------------------------------------------------------------------------


def weight_attacks(run: Run) -> dict[str, Attack]:
    rate, epochs = LEARNING_RATES[run.task], run.options.attack_epochs
    tune = {"epochs": epochs, "optimizer": "adamw", "batch_size": batch_size(run.task)}
    return {
        **{f"fine-tune {f}x": FineTune(learning_rate=f * rate, **tune) for f in (0.01, 0.1, 1)},
        "prune 50 %": MagnitudePrune(0.5),
        "prune 80 %": MagnitudePrune(0.8),
        "prune 80 %, fine-tune 0.1x": MagnitudePrune(
            0.8, finetune_epochs=epochs, learning_rate=0.1 * rate, optimizer="adamw"
        ),
        "8 bit": UniformQuantize(bits=8),
        "4 bit": UniformQuantize(bits=4),
    }


def photographs(run: Run) -> list[Row]:
    """As many crops of photographs as there are training images (10,000 at most), in the range of the task's images."""
    low, high = (getattr(run.images, limit)(dim=(0, 2, 3))[:, None, None] for limit in ("amin", "amax"))
    secret = hashlib.sha256(b"attacker's photographs").digest()
    crops = photograph_crops(SubKey(0, 0, secret), min(len(run.train), 10_000), run.images.shape[1:])
    return [{"pixel_values": low + (high - low) * crop, "labels": 0} for crop in crops]


def survival(run: Run) -> None:
    marked, key = run.marked()
    data, epochs = run.allowed(key), run.options.distill_epochs or DISTILL_EPOCHS[run.task]
    folder = run.options.folder / f"detector{run.seed}"
    radar = USPDetector.from_pretrained(folder) if folder.exists() else None

    def row(label: str, make: Callable[[], Row]) -> None:
        if run.options.rows in label:
            run.row("survival", label, make)

    def measure(attack: Attack, teacher: PreTrainedModel, its_key: WatermarkKey, images: Any) -> Row:
        begin = time.process_time()
        attacked = attack(teacher, images)
        seconds = round(time.process_time() - begin, 1)
        given = answers_of(attacked, run.images)
        numbers = {**quality(given, run.labels), **reading(its_key, attacked), "cpu_seconds": seconds}
        rounded = reading(its_key, lambda asked: (answers_of(attacked, asked) * 100).round() / 100)
        numbers["log2_p_2_decimals"] = rounded["log2_p"]
        if radar is not None and its_key is key:
            numbers["detected"] = round(float(radar.detects(given, run.images).double().mean()), 4)
        return numbers

    for label, attack in weight_attacks(run).items():
        row(label, lambda attack=attack: measure(attack, marked, key, data))
    # A model whose training set is one half, so that the attacker can hold images it never saw.
    half = len(run.train) // 2

    def halved() -> tuple[PreTrainedModel, WatermarkKey]:
        return run.marked(Subset(run.train, range(half)), "half")

    def half_row() -> Row:
        model, its_key = halved()
        return quality(answers_of(model, run.images), run.labels) | reading(its_key, model)

    row("marked model trained on half (teacher of the disjoint half)", half_row)
    transfer: dict[str, Callable[[], tuple[PreTrainedModel, WatermarkKey, Any]]] = {
        "training set": lambda: (marked, key, data),
        "disjoint half": lambda: (*halved(), Subset(run.train, range(half, len(run.train)))),
        "photographs": lambda: (marked, key, photographs(run)),
    }
    common = {"epochs": epochs, "batch_size": batch_size(run.task)}
    # Rows are found again by their label, so a thief with another budget has rows of his own.
    budget = "" if epochs == DISTILL_EPOCHS[run.task] else f", {epochs:g} epochs"
    for student in ("same", "other"):
        for name, given in transfer.items():
            attacks = {f"soft T={t}": Distill(temperature=t, student=student, **common) for t in (1.0, 4.0)}
            if name == "training set":
                attacks["hard labels"] = Distill(mode="hard", student=student, **common)
            for label, attack in attacks.items():
                row(
                    f"distill {label}, {'ViT' if student == 'other' else student} student, {name}{budget}",
                    lambda attack=attack, given=given: measure(attack, *given()),
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--task", choices=list(EPOCHS), required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/soft_label"), help="models and secret keys")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sections", default=",".join(SECTIONS), help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--epochs", type=float, help="the task's own by default")
    parser.add_argument("--images", type=int, help="training images")
    parser.add_argument(
        "--held-out", type=int, default=0, help="judge on this many training images, not on the test set"
    )
    parser.add_argument("--config", type=json.loads, default={}, help="fields of USPConfig as JSON")
    parser.add_argument("--attack-epochs", type=float, default=5)
    parser.add_argument("--distill-epochs", type=float, help=f"by default {DISTILL_EPOCHS}")
    parser.add_argument("--rows", default="", help="only rows of `survival` whose label contains this")
    parser.add_argument("--nulls", type=int, default=35)
    parser.add_argument("--null-epochs", type=float, default=4)
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    wanted = options.sections.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"--sections: {', '.join(sorted(unknown))} unknown; choose of {', '.join(SECTIONS)}")
    if options.nulls <= 2 * len(NULL_KINDS):
        parser.error(f"--nulls: the detector is trained on {2 * len(NULL_KINDS)} and judged on the rest; give more")
    run = Run(options)
    for section in SECTIONS:
        if section in wanted:
            globals()[section](run)
    run.record["summary"] = summary(run.record["seeds"])
    run.save()


if __name__ == "__main__":
    main()
