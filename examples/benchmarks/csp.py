"""
Customised perturbation `csp` on handwritten digits: leaking copies among 1,000 recipients, collusion, students, and the wrapper's latency.

    python examples/benchmarks/csp.py --output runs/csp.json

Copies are the wrapper around one trained model (marked at inference time) and, for collusion by averaging weights, models trained with
`CSPTrainer` from the same start, one key each. Guilty and innocent recipients who are accused are counted at family-wise errors of
2^-64 and 2^-20. Latency is the median of ratios to the bare model, the two taking turns.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from recipes import EPOCHS, arguments, build_model, load_data, train_twin
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_watermark import Owner, WatermarkKey, wrap_timm
from hf_watermark.attacks import Distill
from hf_watermark.evaluation import accuracy
from hf_watermark.methods.soft_label import (
    CSPConfig,
    CSPTrainer,
    PerturbedOutputModelForImageClassification,
    issue_copies,
    recipient_keys,
    trace,
)


ERRORS = (-64, -20)
Row = dict[str, Any]


def train_copy(train: Any, owner: Owner, epochs: float, key: WatermarkKey | None = None) -> CSPTrainer:
    """One recipient's copy; all copies start from the same weights. Without epochs only the key is made."""
    with tempfile.TemporaryDirectory() as scratch:
        identity = {"owner": owner} if key is None else {"key": key}
        trainer = CSPTrainer(
            model=build_model("digits", 0),
            args=arguments("digits", 0, epochs, scratch),
            train_dataset=train,
            watermark=CSPConfig(target_log2_p=0.0),
            **identity,
        )
        if epochs:
            trainer.train()
    return trainer


def verdict(suspect: Any, keys: dict[str, WatermarkKey], guilty: list[str]) -> Row:
    begin = time.perf_counter()
    strength = {found.recipient: found.evidence.log2_p for found in trace(suspect, keys, log2_error=max(ERRORS))}
    counts = {
        f"{who} at 2^{error}": sum(
            log2_p <= error and (name in guilty) == (who == "guilty") for name, log2_p in strength.items()
        )
        for error in ERRORS
        for who in ("guilty", "innocent")
    }
    return {
        "colluders": len(guilty),
        **counts,
        "recipients": len(keys),
        "log2_p": [round(log2_p, 1) for log2_p in strength.values()],
        "seconds": round(time.perf_counter() - begin, 1),
    }


def averaged_answers(models: list[PreTrainedModel]) -> Callable[[torch.Tensor], torch.Tensor]:
    @torch.no_grad()
    def endpoint(images: torch.Tensor) -> torch.Tensor:
        return torch.stack([model.eval()(images).logits.softmax(dim=1) for model in models]).mean(dim=0)

    return endpoint


def averaged_weights(models: list[PreTrainedModel]) -> PreTrainedModel:
    merged = copy.deepcopy(models[0])
    states = [model.state_dict() for model in models]
    merged.load_state_dict(
        {
            name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype)
            for name, tensor in states[0].items()
        }
    )
    return merged.eval()


def tracing(options: argparse.Namespace, record: Row) -> None:
    train, test = load_data("digits", None)
    owner, epochs = Owner.create(), options.epochs
    twin = train_twin("digits", 0, epochs, "runs/csp", train)
    first = train_copy(train, owner, epochs)
    keys = recipient_keys(first.key, owner, [f"recipient {n}" for n in range(options.recipients)])
    # Copies for the few recipients who leak; the test knows everybody.
    leaks = list(keys)[:: max(1, len(keys) // options.leaks)][: options.leaks]
    copies = issue_copies(twin.model, {name: keys[name] for name in leaks})
    images = torch.stack([test[row]["pixel_values"] for row in range(len(test))])
    with torch.no_grad():
        plain, marked = (net.eval()(images).logits.argmax(dim=1) for net in (twin.model, copies[leaks[0]]))
    record["labels_changed"] = int((plain != marked).sum())
    rows = record.setdefault("tracing", {})

    def add(label: str, suspect: Any, guilty: list[str], **more: Any) -> None:
        rows[label] = verdict(suspect, keys, guilty) | more
        print(label, json.dumps(rows[label]), flush=True)
        save(options, record)

    add("unmarked model", twin.model, [], accuracy=accuracy(twin.model, test))
    for name in leaks:
        add(f"wrapper, {name}", copies[name], [name])
    for count in (2, 3, 5):
        guilty = leaks[:count]
        add(f"wrapper, answers of {count} averaged", averaged_answers([copies[name] for name in guilty]), guilty)
    student = Distill(epochs=options.epochs, temperature=1.0)
    add(
        "student of one wrapper",
        stolen := student(copies[leaks[0]], train),
        leaks[:1],
        accuracy=accuracy(stolen, test),
    )
    trained = [train_copy(train, owner, epochs, keys[name]).model for name in leaks[:3]]
    add("trained copy", trained[0], leaks[:1], accuracy=accuracy(trained[0], test))
    for count in (2, 3):
        merged = averaged_weights(trained[:count])
        add(f"trained, weights of {count} averaged", merged, leaks[:count], accuracy=accuracy(merged, test))
        add(f"trained, answers of {count} averaged", averaged_answers(trained[:count]), leaks[:count])


def latency(options: argparse.Namespace, record: Row) -> None:
    """Bare model and wrapper take turns on the same batch; the sign table has 10 classes."""
    size, train = options.size, load_data("digits", None)[0]
    coloured = [item | {"pixel_values": item["pixel_values"].repeat(3, 1, 1)} for item in train]
    claims = {
        channels: train_copy(data, Owner.create(), 0).key.claims()[0] for channels, data in ((1, train), (3, coloured))
    }
    resnet = wrap_timm(timm.create_model("resnet50", num_classes=10), "resnet50", 10)
    rows = record.setdefault("latency", {"threads": options.threads})
    models = {
        f"resnet50, {size} x {size}": (resnet, (3, size, size)),
        "net of 0.31 M, 32 x 32": (build_model("digits", 0), (1, 32, 32)),
    }
    for label, (model, shape) in models.items():
        wrapper = PerturbedOutputModelForImageClassification.perturb(model.eval(), claims[shape[0]])
        for batch in (1, 8, 64) if shape[0] == 1 else (1, 8):
            images = torch.rand(batch, *shape)
            pairs = [(timed(model, images), timed(wrapper, images)) for _ in range(options.rounds + 1)][1:]
            rows[f"{label}, batch {batch}"] = {
                "ratio": round(statistics.median(marked / bare for bare, marked in pairs), 4),
                "bare_ms": round(1000 * statistics.median(bare for bare, _ in pairs), 2),
                "added_ms": round(1000 * statistics.median(marked - bare for bare, marked in pairs), 2),
            }
            print(label, batch, rows[f"{label}, batch {batch}"], flush=True)
            save(options, record)


@torch.no_grad()
def timed(model: Any, images: torch.Tensor) -> float:
    begin = time.perf_counter()
    model(images)
    return time.perf_counter() - begin


def save(options: argparse.Namespace, record: Row) -> None:
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=EPOCHS["digits"])
    parser.add_argument("--recipients", type=int, default=1000)
    parser.add_argument("--leaks", type=int, default=10, help="copies that leak, one at a time")
    parser.add_argument("--rounds", type=int, default=60, help="of the latency measurement")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images for resnet50")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sections", default="tracing,latency", help="one of them or both")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    record: Row = json.loads(options.output.read_text()) if options.output.exists() else {}
    record |= {"epochs": options.epochs}
    for name, section in {"tracing": tracing, "latency": latency}.items():
        if name in options.sections.split(","):
            section(options, record)


if __name__ == "__main__":
    main()
