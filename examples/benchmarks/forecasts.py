"""
How far the forecasts of a training lie from what it ends at: marks in answers, default configs, digits and two small nets, runs of many lengths.

    python examples/benchmarks/forecasts.py --output runs/forecasts.json

A row says what was read at a fifth and at half of the run, what was forecast then, whether the owner was told that the target would not be reached, and what
the mark ended at. `summary` has the error of the forecasts, and the runs that ended below their target without a word. Rows that are in the output are not
measured again.
"""

import argparse
import logging
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from alignment import Results, Row
from transformers import Trainer, TrainingArguments, set_seed

from hf_watermark import Owner
from hf_watermark.evaluation.digits import load_digits_data
from hf_watermark.evaluation.matrix.backbones import build_backbone
from hf_watermark.evaluation.matrix.config import BackboneSpec
from hf_watermark.mapping import AutoEmbedding
from hf_watermark.training.feedback import SAID_AT
from hf_watermark.training.trainer import WatermarkTrainer


METHODS = ("function_coupled", "certified", "usp", "csp")
NETS = {"tiny_resnet": 6e-3, "small_vit": 1e-3}
EPOCHS = (3, 6, 12, 24)


class Heard(logging.Handler):
    """Which sentences of the feedback the owner got."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def trained(method: str | None, net: str, epochs: float, seed: int, train: Any) -> Any:
    model = build_backbone(BackboneSpec(preset=net), 10, tuple(train[0]["pixel_values"].shape), seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=NETS[net], lr_scheduler_type="cosine",
            seed=seed, save_strategy="no", report_to="none", logging_steps=10**6, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        if method is None:
            trainer: Any = Trainer(model, arguments, train_dataset=train)
        else:
            kind = type("Marking", (WatermarkTrainer,), {"embedding_classes": (AutoEmbedding.for_method(method),)})
            trainer = kind(model, arguments, train_dataset=train, watermark=method, owner=Owner.create())
        set_seed(seed)
        trainer.train()
    return trainer


@torch.no_grad()
def accuracy(model: Any, test: Any) -> float:
    answers = model.eval()(pixel_values=torch.stack([item["pixel_values"] for item in test])).logits.argmax(dim=1)
    return float((answers == torch.tensor([item["labels"] for item in test])).float().mean())


def measure(method: str, net: str, epochs: float, seed: int, train: Any, test: Any) -> Row:
    heard, logger = Heard(), logging.getLogger("hf_watermark.training.embedding")
    logger.addHandler(heard)
    try:
        trainer = trained(method, net, epochs, seed, train)
    finally:
        logger.removeHandler(heard)
    feedback, steps = trainer.embeddings[0].feedback, trainer.state.max_steps
    row: Row = {"steps": steps, "target": feedback.target, "log2_p": round(trainer.evidence.log2_p, 1)}
    row |= {"told": len(heard.said), "accuracy": accuracy(trainer.model, test)}
    for share in SAID_AT:
        early = [item for item in feedback.readings if item.step <= share * steps]
        if early:
            row[f"read_at_{share}"] = round(early[-1].log2_p, 1)
            row[f"forecast_at_{share}"] = round(early[-1].log2_p * steps / early[-1].step, 1)
    return row


def summary(rows: dict[str, Row]) -> Row:
    """Errors of log2 p, forecasts beyond the target counted as the target: nothing more is wanted of these runs."""
    found: Row = {"runs": len(rows)}
    for share in SAID_AT:
        name = f"forecast_at_{share}"
        errors = [
            max(row[name], row["target"]) - max(row["log2_p"], row["target"]) for row in rows.values() if name in row
        ]
        found |= {
            f"median_error_at_{share}": round(statistics.median(errors), 1),
            f"mean_absolute_error_at_{share}": round(statistics.mean(map(abs, errors)), 1),
        }
    below = [label for label, row in rows.items() if row["log2_p"] > row["target"]]
    told = [label for label, row in rows.items() if row["told"]]
    return found | {
        "below_target": len(below),
        "told": len(told),
        "below_without_a_word": [label for label in below if label not in told],
        "told_in_vain": [label for label in told if label not in below],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/forecasts.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = load_digits_data("train"), load_digits_data("test")
    results = Results(options.output)
    results.record.pop("summary", None)
    for seed in range(options.seeds):
        for net in NETS:
            for epochs in EPOCHS:
                place = f"{net} | {epochs} epochs | seed {seed}"
                results.row(
                    "twins",
                    place,
                    lambda n=net, e=epochs, s=seed: {"accuracy": accuracy(trained(None, n, e, s, train).model, test)},
                )
                for method in METHODS:
                    results.row(
                        "runs",
                        f"{method} | {place}",
                        lambda m=method, n=net, e=epochs, s=seed: measure(m, n, e, s, train, test),
                    )
    results.row("summary", "all", lambda: summary(results.record["runs"]))


if __name__ == "__main__":
    main()
