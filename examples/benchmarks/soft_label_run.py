"""What the benchmarks of soft labels share: one run with its models and rows, null models, and what is measured of a model."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recipes import EPOCHS, LEARNING_RATES, arguments, build_model, load_data, train_twin
from torch.nn import functional
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
)

from hf_watermark import Owner, Suspect, WatermarkKey
from hf_watermark.attacks import Distill
from hf_watermark.methods.soft_label import USPConfig, USPTrainer, USPVerifier
from hf_watermark.training.triggers import without_rows


NULL_KINDS = (
    "other seed",
    "smoothing 0.05",
    "smoothing 0.1",
    "smoothing 0.2",
    "mixup",
    "distilled from a clean teacher",
    "other architecture",
)
Row = dict[str, Any]


class Run:
    """One seed: its data, its folder of models, and its rows in the JSON."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.task, self.seed = options, options.task, options.seed
        self.epochs = options.epochs or EPOCHS[options.task]
        self.config = USPConfig(**{"target_log2_p": 0.0} | options.config)
        self.train, self.test = load_data(options.task, options.data, options.images, options.held_out)
        self.images = torch.stack([self.test[row]["pixel_values"] for row in range(len(self.test))])
        self.labels = torch.tensor([int(self.test[row]["labels"]) for row in range(len(self.test))])
        output: Path = options.output
        output.parent.mkdir(parents=True, exist_ok=True)
        self.record: Row = json.loads(output.read_text()) if output.exists() else {"seeds": {}}
        settings = {"task": options.task, "epochs": self.epochs, "config": self.config.to_dict()}
        if output.exists() and settings != {name: self.record[name] for name in settings}:
            raise SystemExit(
                f"{output} holds rows of another task, config or length; choose another --output and --folder"
            )
        self.record |= settings
        self.rows: Row = self.record["seeds"].setdefault(str(options.seed), {})

    def row(self, section: str, label: str, measure: Callable[[], Row]) -> Row:
        """The row of an earlier run, or a measurement that is written down at once."""
        rows = self.rows.setdefault(section, {})
        if label not in rows:
            begin = time.process_time()
            rows[label] = measure()
            rows[label].setdefault("cpu_seconds", round(time.process_time() - begin, 1))
            self.save()
            print(section, "|", label, "|", json.dumps(rows[label]), flush=True)
        return rows[label]

    def save(self) -> None:
        self.options.output.write_text(json.dumps(self.record, indent=1) + "\n")

    def model(self, name: str, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """The model of an earlier run, or a new one that is kept."""
        folder = self.options.folder / name
        if not (folder / "config.json").exists():
            make().save_pretrained(folder)
        return AutoModelForImageClassification.from_pretrained(folder).eval()

    # The models under study

    def twin(self) -> PreTrainedModel:
        def make() -> PreTrainedModel:
            return train_twin(self.task, self.seed, self.epochs, self.options.folder / "scratch", self.train).model

        return self.model(f"twin{self.seed}", lambda: self._timed("twin", make))

    def marked(self, data: Any = None, suffix: str = "") -> tuple[PreTrainedModel, WatermarkKey]:
        """The marked model, trained on `data` (everything by default), with its key."""
        name, keys = f"marked{self.seed}{suffix}", self.options.folder / "keys" / f"{self.seed}{suffix}"

        def make() -> PreTrainedModel:
            trainer = USPTrainer(
                model=build_model(self.task, self.seed),
                args=arguments(self.task, self.seed, self.epochs, self.options.folder / "scratch"),
                train_dataset=self.train if data is None else data,
                watermark=self.config,
                owner=Owner.create(),
            )
            trainer.train()
            trainer.key.save(keys, overwrite=True)
            return trainer.model

        model = self.model(name, lambda: self._timed("marked" + suffix, make))
        return model, WatermarkKey.load(keys)

    def _timed(self, name: str, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        begin = time.process_time()
        model = make()
        self.row("training", name, lambda: {"cpu_seconds": round(time.process_time() - begin, 1)})
        return model

    def allowed(self, key: WatermarkKey) -> Any:
        """The training images without the key's queries."""
        return without_rows(self.train, key.pool["usp.rows"].tolist())

    def null(self, number: int) -> tuple[str, PreTrainedModel]:
        """Kind and model of one null model; they do not depend on any key, so all seeds share them."""
        kind = NULL_KINDS[number % len(NULL_KINDS)]
        return kind, self.model(f"null{number}", lambda: self._train_null(kind, 1000 + number))

    def _train_null(self, kind: str, seed: int) -> PreTrainedModel:
        epochs, scratch = self.options.null_epochs, self.options.folder / "scratch"
        if kind.startswith("distilled"):
            # Few epochs: the recipe's rate, and temperatures 1 and 4 in turn.
            rate = LEARNING_RATES[self.task]
            distill = Distill(learning_rate=rate, epochs=epochs, temperature=1 + 3 * (seed % 2), seed=seed)
            return distill(self.twin(), self.train)
        model = build_model(self.task, seed)
        if kind == "other architecture":  # needs more steps to learn anything, and they are cheaper
            model, epochs = small_vit(model.config, self.images.shape[1:]), 3 * epochs
        args = arguments(self.task, seed, epochs, scratch)
        args.warmup_steps = min(args.warmup_steps, 20)
        if kind.startswith("smoothing"):
            args.label_smoothing_factor = float(kind.split()[1])
        trainer = (MixupTrainer if kind == "mixup" else Trainer)(model=model, args=args, train_dataset=self.train)
        trainer.model_accepts_loss_kwargs = False
        trainer.train()
        return model


def small_vit(config: Any, shape: torch.Size) -> PreTrainedModel:
    """A ViT with 16 patches, smaller than the attackers' students."""
    channels, height, width = shape
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    labels = {"id2label": config.id2label, "label2id": config.label2id}
    patch = {"image_size": (height, width), "patch_size": (height // 4, width // 4), "num_channels": channels}
    return ViTForImageClassification(ViTConfig(**patch, **sizes, **labels))


class MixupTrainer(Trainer):
    """Mixup (Zhang et al., ICLR 2018) with one uniform share per batch."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        images, labels = inputs["pixel_values"], inputs["labels"]
        order, share = torch.randperm(len(labels), device=labels.device), float(torch.rand(()))
        outputs = model(pixel_values=share * images + (1 - share) * images[order])
        first, second = (functional.cross_entropy(outputs.logits, target) for target in (labels, labels[order]))
        loss = share * first + (1 - share) * second
        return (loss, outputs) if return_outputs else loss


@torch.no_grad()
def answers_of(model: PreTrainedModel, images: torch.Tensor) -> torch.Tensor:
    """Probabilities `[n, classes]` (float64)."""
    model.eval()
    return torch.cat([model(batch).logits.double().softmax(dim=1) for batch in images.split(500)])


def quality(answers: torch.Tensor, labels: torch.Tensor) -> Row:
    """Accuracy, worst class, and expected calibration error in 15 bins of equal width (Guo et al., ICML 2017)."""
    confidence, guess = answers.max(dim=1)
    right = (guess == labels).double()
    place = (confidence * 15).ceil().long()
    error = sum(abs(float((right - confidence)[place == bin].sum())) for bin in place.unique()) / len(labels)
    worst = min(float(right[labels == label].mean()) for label in labels.unique())
    numbers = {"accuracy": float(right.mean()), "worst_class": worst, "ece": error, "confidence": confidence.mean()}
    return {name: round(float(value), 6) for name, value in numbers.items()}


def reading(key: WatermarkKey, suspect: Any, decoys: int = 0) -> Row:
    """What the key's first sub-key reads from a suspect."""
    [claim] = key.claims()
    part = USPVerifier(claim).verify(Suspect.open(suspect, key.backbone), decoys=decoys)[0]
    row = {"log2_p": round(part.log2_p, 2), "level": part.level, "matches": part.matches, "trials": part.trials}
    controls = {name: value for name, value in part.controls.items() if name != "rates"}
    return row | {"queries": part.details["queries"]} | ({"controls": controls} if decoys else {})


def batch_size(task: str) -> int:
    return 64 if task == "digits" else 128
