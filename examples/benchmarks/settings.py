"""
Is a mark ever lost in a setting of the Trainer without a word? One setting after the other, times the six methods, on a tiny digits net.

    python examples/benchmarks/settings.py --output runs/settings.json

Then for some optimizers, numbers of steps and learning rates: what the preflight said, and what came.

A row says how a run ended: `marked` (the mark was read from the files that were saved), `refused` (an error before the first step, with its
sentence), `warned` (not marked, as the preflight had said), or `unmarked` (nobody had said so). Rows that are in the output are not measured again.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from alignment import Results, Row
from datasets import Dataset
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)

from hf_watermark import AutoTrainer, Owner, WatermarkConfig, plan_key, verify
from hf_watermark.backbones import as_pretrained
from hf_watermark.evaluation.digits import load_digits_data
from hf_watermark.mapping import METHODS
from hf_watermark.training.course import Course


Rows = list[dict[str, Any]]
# A config per method that such a small net can hold, and the steps and learning rate of a run that puts it in.
FIELDS: dict[str, dict[str, Any]] = {
    "greedy_residuals": {"bits": 128, "subkeys": 2, "group_size": 16},
    "watermas": {"bits": 128, "subkeys": 2},
    "function_coupled": {"rules": 32, "trigger_ratio": 1.0, "images_per_rule": 4, "pool_per_class": 4},
    "certified": {"triggers": 80, "sigma": 0.1, "strength": 1.0, "trigger_ratio": 2.0, "suspect_draws": 30},
    "usp": {"features": 16, "pool_per_class": 10},
    "csp": {"features": 16, "pool_per_class": 10},
}
STEPS = {"greedy_residuals": 60, "watermas": 30, "function_coupled": 130, "certified": 50, "usp": 130, "csp": 130}
RATE = 6e-3


@dataclass
class Setting:
    """
    One change of an ordinary run.

    Args:
        fields (`dict`):
            Of `TrainingArguments`; `share` of the steps is taken out before.
        net, data, given:
            The net, the rows, and other arguments of the Trainer, made of the net.
        prepare, resumes:
            What is done with the net before; whether the run is interrupted and resumed.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    net: Callable[[], nn.Module] | None = None
    data: Callable[[Rows], Any] = list
    given: Callable[[nn.Module], dict[str, Any]] = lambda net: {}
    prepare: Callable[[nn.Module], Any] = lambda net: None
    resumes: bool = False


# Nets and data


def resnet() -> PreTrainedModel:
    fields: dict[str, Any] = {"num_channels": 1, "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}
    return ResNetForImageClassification(ResNetConfig(**fields, layer_type="basic", num_labels=10))


def vit(shared: bool = False) -> PreTrainedModel:
    fields: dict[str, Any] = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "intermediate_size": 128}
    net = ViTForImageClassification(
        ViTConfig(**fields, num_hidden_layers=4, num_attention_heads=2, num_channels=1, num_labels=10)
    )
    if shared:
        layers = net.vit.layers
        layers[1], layers[3] = layers[0], layers[2]
    return net


def of_timm() -> nn.Module:
    import timm

    return timm.create_model("test_resnet", num_classes=10, in_chans=1)


def of_torchvision() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=10)


class Own(nn.Module):
    """Somebody's own module around a net."""

    def __init__(self, form: str):
        super().__init__()
        self.net, self.form = resnet(), form
        if form != "plain":
            self.config = self.net.config

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.net(pixel_values).logits
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return (loss, logits) if self.form == "tuple" else {"loss": loss, "logits": logits}


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows: Rows):
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def digits() -> Rows:
    rows = load_digits_data("train")
    return [{"pixel_values": functional.avg_pool2d(row["pixel_values"], 2), "labels": row["labels"]} for row in rows]


def with_picture(rows: Rows) -> Rows:
    return [row | {"image": Image.new("L", (4, 4)), "path": "a.png"} for row in rows]


def several_labels(rows: Rows) -> Rows:
    return [row | {"labels": hot(torch.tensor([row["labels"], (row["labels"] + 3) % 10])).sum(dim=0)} for row in rows]


def hot(labels: torch.Tensor) -> torch.Tensor:
    return functional.one_hot(labels, 10).float()


# Losses, collators, callbacks


def counted_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    return functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def soft_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    return functional.cross_entropy(outputs.logits, labels)


def mixup(rows: Rows) -> dict[str, torch.Tensor]:
    batch = default_data_collator(rows)
    images, labels = batch["pixel_values"], hot(batch["labels"])
    return {"pixel_values": 0.8 * images + 0.2 * images.flip(0), "labels": 0.8 * labels + 0.2 * labels.flip(0)}


class Average(TrainerCallback):
    """A moving average of the weights takes their place in the end."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.kept = {name: weight.clone() for name, weight in model.state_dict().items()}

    def on_step_end(self, args, state, control, model, **kwargs):
        for name, weight in model.state_dict().items():
            if weight.is_floating_point():
                self.kept[name].lerp_(weight, 0.1)
            else:
                self.kept[name].copy_(weight)

    def on_train_end(self, args, state, control, model, **kwargs):
        model.load_state_dict(self.kept)


class Freeze(TrainerCallback):
    """Somebody's own callback that freezes the backbone when the training begins."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        model.resnet.requires_grad_(False)


def stem(net: nn.Module) -> Any:
    return net.resnet.embedder.requires_grad_(False)


def optimizer(make: Any, part: Callable[[nn.Module], nn.Module] = lambda net: net, **fields: Any) -> Callable:
    return lambda net: {"optimizers": (make(part(net).parameters(), **fields), None)}


EVALUATION = {"eval_strategy": "steps", "eval_steps": 0.25}
SAVING = {"save_strategy": "steps", "save_steps": 0.25}
OPTIMIZERS = {
    "adamw, fused": {"optim": "adamw_torch_fused"},
    "adafactor": {"optim": "adafactor"},
    "rmsprop": {"optim": "rmsprop"},
    "adagrad": {"optim": "adagrad", "learning_rate": 3e-2},
    "sgd": {"optim": "sgd", "learning_rate": 1.0},
    "sgd, momentum 0.9": {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.1},
    "sgd at adamw's rate": {"optim": "sgd"},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {},
    "warmup_stable_decay": {"lr_scheduler_kwargs": {"num_decay_steps": 10}, "warmup_steps": 10},
    "reduce_lr_on_plateau": EVALUATION | {"share": 2.0},
}
SETTINGS: dict[str, Setting] = {
    "as documented": Setting(),
    **{f"optimizer: {name}": Setting(fields) for name, fields in OPTIMIZERS.items()},
    "optimizer: your own Adam": Setting(given=optimizer(torch.optim.Adam, lr=RATE)),
    "optimizer: of the head only": Setting(given=optimizer(torch.optim.Adam, lambda net: net.classifier, lr=RATE)),
    "optimizer: another class": Setting(given=lambda net: {"optimizer_cls_and_kwargs": (torch.optim.NAdam, {"lr": RATE})}),
    "learning rate 1e-7": Setting({"learning_rate": 1e-7}),
    "learning rate 0": Setting({"learning_rate": 0.0}),
    "three steps": Setting({"max_steps": 3}),
    "weight decay 1": Setting({"weight_decay": 1.0}),
    "batches of 1": Setting({"per_device_train_batch_size": 1}),
    "4 steps accumulated": Setting({"gradient_accumulation_steps": 4, "per_device_train_batch_size": 10}),
    "accumulated, compute_loss_func": Setting(
        {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 10}, given=lambda net: {"compute_loss_func": counted_loss}
    ),
    "clipped at 0.1": Setting({"max_grad_norm": 0.1}),
    "bf16": Setting({"bf16": True}),
    "fp16": Setting({"fp16": True}),
    "torch_compile": Setting({"torch_compile": True, "torch_compile_backend": "eager"}),
    "activation checkpointing, ViT": Setting({"activation_checkpointing": True}, vit),
    "channels_last": Setting(prepare=lambda net: net.to(memory_format=torch.channels_last)),
    "label smoothing": Setting({"label_smoothing_factor": 0.1}),
    "mixup": Setting(given=lambda net: {"data_collator": mixup, "compute_loss_func": soft_loss}),
    "multi-label": Setting(
        data=several_labels, prepare=lambda net: setattr(net.config, "problem_type", "multi_label_classification")
    ),
    "columns and pictures beside": Setting(data=with_picture),
    "datasets.Dataset": Setting(data=lambda rows: Dataset.from_list(rows).with_format("torch")),
    "remove_unused_columns off": Setting({"remove_unused_columns": False}),
    "a stream": Setting(data=Stream),
    "dataloader: 2 workers, drop_last": Setting({"dataloader_num_workers": 2, "dataloader_drop_last": True}),
    "load_best_model_at_end, ViT": Setting(
        EVALUATION | SAVING | {"load_best_model_at_end": True, "metric_for_best_model": "loss"}, vit
    ),
    "resumed, ViT": Setting(SAVING, vit, resumes=True),
    "auto_find_batch_size": Setting({"auto_find_batch_size": True}),
    "moving average in the end": Setting(given=lambda net: {"callbacks": [Average()]}),
    "model_init": Setting(given=lambda net: {"model": None, "model_init": resnet}),
    "backbone frozen": Setting(prepare=lambda net: net.resnet.requires_grad_(False)),
    "backbone frozen by a callback": Setting(given=lambda net: {"callbacks": [Freeze()]}),
    "stem frozen": Setting(prepare=stem),
    "head frozen": Setting({"share": 2.0}, prepare=lambda net: net.classifier.requires_grad_(False)),
    "layers that share weights, ViT": Setting(net=lambda: vit(shared=True)),
    "tuples as output": Setting(net=lambda: Own("tuple")),
    "a module without config": Setting(net=lambda: Own("plain")),
    "a module of timm": Setting(net=of_timm),
    "a module of torchvision": Setting(net=of_torchvision),
    **{f"schedule: {name}": Setting({"lr_scheduler_type": name} | fields) for name, fields in SCHEDULES.items()},
}  # fmt: skip

# Optimizer, steps and learning rate of runs that are forecast; what these methods put in does not follow from it, or as in another one.
SAME = ("watermas", "csp")
COURSES = [
    *(("adamw_torch", steps, rate) for steps in (10, 30, 90, 270) for rate in (1e-4, 1e-3, 3e-3)),
    *(("sgd", 90, rate) for rate in (1e-2, 1e-1, 5e-1)),
]


# One run


class Said(logging.Handler):
    """What the preflight warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.endswith("preflight"):
            self.lines.append(record.getMessage())


class Foreseen(TrainerCallback):
    """What the preflight reckons with."""

    def __init__(self, trainer: Any):
        self.trainer, self.forecast = trainer, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.forecast = self.trainer.embeddings[0].forecast(Course.of(self.trainer))


def foreseen(setting: Setting, method: str, rows: Rows) -> Row:
    """Units that are right and log2 p, as they were forecast and as they came."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = made(setting, method, rows, Path(folder), 1.0)
        watch = Foreseen(trainer)
        trainer.add_callback(watch)
        trainer.train()
        if watch.forecast is None:
            return {}
        most, evidence = watch.forecast, trainer.evidence
        came = {"right": round(evidence.rate, 4), "log2_p": round(evidence.log2_p, 1), "found": evidence.found}
        return came | {"forecast_right": round(most.units / most.of, 4), "forecast_log2_p": round(most.log2_p, 1)}


def run(setting: Setting, method: str, rows: Rows, share: float = 1.0) -> Row:
    """How a training in this setting ends for this method; `share` of the steps."""
    said, started, folder = Said(), time.process_time(), tempfile.TemporaryDirectory()
    logging.getLogger("hf_watermark").addHandler(said)
    trainer: Any = None
    try:
        trainer = made(setting, method, rows, Path(folder.name), share)
        trainer.train()
        if setting.resumes:
            trainer = made(setting, method, rows, Path(folder.name), share, trainer.key)
            trainer.train(resume_from_checkpoint=str(sorted(Path(folder.name).glob("checkpoint-*"))[0]))
        trainer.save_model(folder.name)
        # Without a config a net cannot be built again, and is asked as it is.
        saved = folder.name if trainer.key.backbone else trainer.model
        evidence = verify(saved, trainer.key, beacon=trainer.key.beacon)
    except ValueError as error:
        if trainer is not None and trainer.state.global_step and not setting.resumes:
            raise
        return {"end": "refused", "said": str(error)}
    finally:
        logging.getLogger("hf_watermark").removeHandler(said)
        seconds = round(time.process_time() - started, 1)
        folder.cleanup()
    end = "marked" if evidence.found else "warned" if said.lines else "unmarked"
    return {"end": end, "log2_p": round(evidence.log2_p, 1), "said": " ".join(said.lines), "seconds": seconds}


def made(setting: Setting, method: str, rows: Rows, folder: Path, share: float, key: Any = None) -> Any:
    """A trainer of the ordinary run with this change, under a fresh key that is bound to a beacon, or the one given."""
    torch.manual_seed(0)
    net = resnet() if setting.net is None else setting.net()
    setting.prepare(net)
    config: WatermarkConfig = METHODS[method].load("Config")(**FIELDS[method])
    fields = dict(setting.fields)
    steps = max(1, round(STEPS[method] * share * fields.pop("share", 1.0)))
    plain: dict[str, Any] = {
        "max_steps": steps,
        "per_device_train_batch_size": 40,
        "learning_rate": RATE,
        "save_strategy": "no",
    }
    plain |= {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }
    given: dict[str, Any] = {
        "model": net,
        "train_dataset": setting.data(rows),
        "eval_dataset": rows[:80],
    } | setting.given(net)
    if key is None:
        key = plan_key(as_pretrained(net), rows, config, Owner.create()).bind_beacon(b"\x07" * 32, "a value of a test")
    arguments = TrainingArguments(str(folder), **plain | fields)
    return AutoTrainer.for_method(method)(args=arguments, watermark=config, key=key, **given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=[])
    parser.add_argument("--output", type=Path, default=Path("runs/settings.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results, rows = Results(options.output), digits()
    later = [method for method in options.methods if method == "csp"]  # trained as usp is
    for methods, name in product(
        ([m for m in options.methods if m not in later], later), options.settings or SETTINGS
    ):
        for method in methods:
            results.row("settings", f"{name} | {method}", partial(run, SETTINGS[name], method, rows))
    for method in () if options.settings else options.methods:
        for optim, steps, rate in () if method in SAME else COURSES:
            setting = Setting({"optim": optim, "max_steps": steps, "learning_rate": rate})
            label = f"{method} | {optim} | {steps} | {rate:g}"
            results.row("forecasts", label, partial(foreseen, setting, method, rows))


if __name__ == "__main__":
    main()
