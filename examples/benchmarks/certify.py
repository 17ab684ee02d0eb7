"""
Speed and memory of certification against the straightforward loop, and of embedding against the released schedule.

    python examples/benchmarks/certify.py --threads 2 --output runs/certify.json

The straightforward loop draws a fresh noise dictionary, adds it to the parameters, runs the triggers, and subtracts it again. It is
run for both kinds of certificate: over the parameters of the model as it was trained, and over those of the model with its BatchNorms
folded. Loop, full certificate and early-stopped certificate take turns in one process; medians of their ratios over the rounds are
reported. Memory is the peak of a resnet50 in a process of its own. `--embedding digits` or `--embedding cifar10 --data FOLDER` compares epoch
times instead: plain `Trainer`, the default schedule and the released one (2,100 noise draws per batch of 64 triggers before each epoch) at
the same noise and the same labels.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from recipes import arguments, build_model, load_data, train_twin

from hf_watermark import CertifiedConfig, CertifiedTrainer, Owner, wrap_timm
from hf_watermark.backbones import FoldedNet
from hf_watermark.evaluation import accuracy
from hf_watermark.methods.certified import CertifiedEmbedding, CertifiedVerifier
from hf_watermark.methods.certified.certificate import curve_of, owner_alpha
from hf_watermark.methods.certified.noise import NoisyNets, clean_weights, noise_scales
from hf_watermark.methods.certified.released import WARMUP_EPOCHS


RADII = (0.25, 0.5, 0.75, 1.0)


def mark(train: Any, epochs: float, task: str = "digits", **fields: Any) -> CertifiedTrainer:
    trainer = CertifiedTrainer(
        model=build_model(task, 0),
        args=arguments(task, 0, epochs, "runs/certify"),
        train_dataset=train,
        watermark=CertifiedConfig(**{"target_log2_p": 0.0, "noise": "relative"} | fields),
        owner=Owner.create(),
    )
    trainer.train()
    return trainer


@torch.no_grad()
def straightforward(trainer: CertifiedTrainer, draws: int) -> np.ndarray:
    """Match counts of the released loop on the same triggers, parameters and noise levels."""
    model: Any = trainer.model.eval()
    embedding = trainer.embedding(CertifiedEmbedding)
    if embedding.config.moves == "all":
        clean = {name: tensor.clone() for name, tensor in embedding.net.coordinates(model).items()}
        model = embedding.net.holding(clean)
    sigma, counts = embedding.spread, []
    for _ in range(draws):
        noise = {name: sigma[name] * torch.randn_like(parameter) for name, parameter in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.add_(noise[name])
        answers = model(pixel_values=embedding.triggers).logits.argmax(dim=1)
        counts.append(int((answers == embedding.labels).sum()))
        for name, parameter in model.named_parameters():
            parameter.sub_(noise[name])
    return np.array(counts)


def timed(run: Any) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def speed(options: argparse.Namespace, trainer: CertifiedTrainer) -> dict[str, Any]:
    half = largest_radius(options.draws) / 2
    rows = []
    for number in range(options.rounds):
        loop, counts = timed(lambda: straightforward(trainer, options.draws))
        full, certificate = timed(lambda: trainer.certify(RADII, draws=options.draws))
        at_least = (0.5, 0.8, 0.95)[number % 3]
        early, decided = timed(lambda: trainer.certify([half], draws=options.draws, at_least=at_least))  # noqa: B023
        rows.append(
            {
                "seconds": {"loop": round(loop, 3), "full": round(full, 3), "early": round(early, 3)},
                "loop_over_full": round(loop / full, 3),
                "full_over_early": round(full / early, 3),
                "at_least": at_least,
                "early_draws": [row.draws for curve in decided.curves.values() for row in curve],
                "early_certified": decided.certified,
                "certified_accuracy": [row.accuracy for curve in certificate.curves.values() for row in curve],
                "loop_accuracy": loop_accuracy(trainer, counts),
            }
        )
        print(json.dumps(rows[-1]))
    medians = {
        name: round(statistics.median(row[name] for row in rows), 3) for name in ("loop_over_full", "full_over_early")
    }
    return {"radius_of_early_stopping": round(half, 3), "medians": medians, "rounds": rows}


def largest_radius(draws: int) -> float:
    low, high = 0.1, 9.9
    while high - low > 1e-3:
        middle = (low + high) / 2
        try:
            owner_alpha(0.99, [middle], draws)
            low = middle
        except ValueError:
            high = middle
    return low


def loop_accuracy(trainer: CertifiedTrainer, counts: np.ndarray) -> list[float | None]:
    verifier = CertifiedVerifier(trainer.key.claims()[0])
    rows = curve_of(counts, verifier, RADII, owner_alpha(0.99, RADII, len(counts)))
    return [row.accuracy for row in rows]


def memory() -> None:
    """Prints the peak memory beside a resnet50 while draws run, in multiples of the model. Called in a process of its own."""
    torch.set_num_threads(1)
    model = wrap_timm(timm.create_model("resnet50", num_classes=10), "resnet50", 10).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        model(images)
    size = sum(parameter.nbytes for parameter in model.parameters())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    net = FoldedNet(model, images)
    weights = clean_weights(net, model)
    nets = NoisyNets(net, weights, noise_scales(weights, "relative"))
    for _ in nets.answers(range(5), images):
        pass
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"model_bytes": size, "peak_total_in_models": round(1 + (after - before) / size, 3)}))


def embedding(options: argparse.Namespace) -> dict[str, Any]:
    task, epochs = options.embedding, options.embedding_epochs
    train, test = load_data(task, options.data)
    rows: dict[str, Any] = {"task": task, "epochs": epochs, "sigma": options.sigma, "threads": options.threads}
    seconds, twin = timed(lambda: train_twin(task, 0, epochs, "runs/certify", train))
    rows["plain"] = {"seconds_per_epoch": round(seconds / epochs, 3), "accuracy": accuracy(twin.model, test)}
    plain = rows["plain"]["seconds_per_epoch"]
    for schedule in ("amortised", "released"):
        seconds, trainer = timed(lambda: mark(train, epochs, task, schedule=schedule, sigma=options.sigma))  # noqa: B023
        certificate = trainer.certify((0.5, 1.0), draws=options.draws)
        rows[schedule] = {
            "seconds_per_epoch": round(seconds / epochs, 3),
            "ratio": round(seconds / epochs / plain, 3),
            "accuracy": accuracy(trainer.model, test),
            "certified_accuracy": {"0.5": certificate.accuracy_at(0.5), "1.0": certificate.accuracy_at(1.0)},
        }
        if schedule == "released":  # which begins after a warm-up of plain epochs
            noisy = epochs - min(WARMUP_EPOCHS, epochs // 2)
            rows[schedule]["ratio_after_warmup"] = round((seconds / plain - epochs + noisy) / noisy, 3)
        print(schedule, json.dumps(rows[schedule]), flush=True)
        save(options, rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--epochs", type=float, default=12, help="of the model that is certified")
    parser.add_argument("--embedding", choices=("digits", "cifar10"), help="compare epoch times instead")
    parser.add_argument("--embedding-epochs", type=int, default=4)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10's parquet files")
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        return memory()
    torch.set_num_threads(options.threads)
    if options.embedding:
        return save(options, embedding(options))
    train, _ = load_data("digits", None)
    record: dict[str, Any] = {
        "machine": {"cpu": platform.machine(), "threads": options.threads},
        "draws": options.draws,
        "speed": {
            f"{moves}, {precision}": speed(
                options, mark(train, options.epochs, sigma=options.sigma, moves=moves, precision=precision)
            )
            for moves, precision in (("all", "float32"), ("all", "bfloat16"), ("parameters", "float32"))
        },
    }
    peak = subprocess.run([sys.executable, __file__, "--memory"], capture_output=True, text=True, check=True).stdout
    record["memory"] = json.loads(peak.splitlines()[-1])
    print({moves: row["medians"] for moves, row in record["speed"].items()}, record["memory"])
    save(options, record)
    return None


def save(options: argparse.Namespace, record: dict[str, Any]) -> None:
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
