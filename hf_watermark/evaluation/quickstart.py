"""The whole path once, on handwritten digits: mark, attack, forge, verify, report."""

import logging
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from .. import __version__
from ..attacks import (
    Attack,
    Distill,
    FineTune,
    FlipBatchNormSigns,
    Int8Quantize,
    MagnitudePrune,
    ResetHead,
    UniformQuantize,
    WeightNoise,
)
from ..attacks.training import QUIET
from ..configuration import WatermarkConfig
from ..forgery import ForgeryResult, adversarial_triggers, counterfeit, overwrite, search_keys
from ..keys import Owner, WatermarkKey, refuse_model_folder
from ..methods.function_coupled import FunctionCoupledConfig, FunctionCoupledTrainer
from ..methods.greedy_residuals import GreedyResidualsConfig, GreedyResidualsTrainer
from ..serialization import InvalidInput, write_bytes_atomic, write_json_atomic
from ..training.trainer import stack_trainers
from ..verifying import verify
from .digits import build_digits_model, load_digits_data
from .quickstart_terminal import Stages, show_table
from .report import percent, write_report
from .survival import Row, survival_row


SCHEMA = "hf-watermark/quickstart/v1"
MARKER = ".hf-watermark-quickstart"
LEARNING_RATE, BATCH_SIZE = 4e-3, 64
# Such small steps do not gain from more.
MOST_THREADS = 2


def run_quickstart(
    output: str | Path,
    seed: int = 0,
    epochs: float = 20,
    attack_epochs: float = 5,
    distill_epochs: float = 15,
    searched_keys: int = 2000,
    trigger_steps: int = 30,
    console: Console | None = None,
) -> dict[str, Any]:
    """
    Trains an unmarked twin and a model marked with both methods on handwritten digits, attacks and forges, verifies every result, and
    writes into `output`: `model/` (with the public `watermark/` folder), `key/`, `owner.json`, `evidence.json` and `report.html`.

    Args:
        output (`str` or `Path`):
            A new or empty folder, or one that an earlier quickstart made: what it wrote is then replaced.
        seed (`int`, *optional*, defaults to 0):
            Seed of initialisation, data order and attacks. Keys are always fresh.
        epochs (`float`, *optional*, defaults to 20):
            Passes over the 1437 training images, for twin and marked model.
        attack_epochs, distill_epochs (`float`, *optional*, default to 5 and 15):
            Passes of each training attack, and of the distillation, which starts from nothing.
        searched_keys (`int`, *optional*, defaults to 2000):
            Keys that the key search tries.
        trigger_steps (`int`, *optional*, defaults to 30):
            Gradient steps of the forger who optimises trigger images.

    Returns:
        `dict`: the content of `evidence.json`.

    Raises:
        [`~serialization.InvalidInput`]: when `output` holds anything that is not a quickstart's.
        `ValueError`: when `output` lies inside a model folder, where the key would be published.
    """
    output = Path(output)
    refuse_foreign_folder(output)
    begin = time.perf_counter()
    images, test = load_digits_data("train"), load_digits_data("test")
    owner, console = Owner.create(), console or Console()
    attacks = quickstart_attacks(attack_epochs, distill_epochs, seed)
    with _few_threads(), Stages(console, total=3 + len(attacks) + 4) as stages:
        recipe = (images, epochs, seed, stages)
        twin = train("train unmarked twin", Trainer, *recipe).model.eval()
        stacked = stack_trainers(GreedyResidualsTrainer, FunctionCoupledTrainer)
        trainer = train("train marked model", stacked, *recipe, watermark=marks(), owner=owner)
        model, key = trainer.model.eval(), trainer.key
        with stages("verify twin and marked model"):
            twin_evidence, marked_evidence = verify(twin, key), trainer.evidence
            twin_row = survival_row("unmarked twin", twin, key, test, twin, evidence=twin_evidence)
            marked_row = survival_row("marked model", model, key, test, twin, evidence=marked_evidence)
        rows = []
        for label, attack in attacks.items():
            with stages(f"attack: {label}"):
                rows.append(_attack_row(label, attack, model, key, images, test))
        forgeries = run_forgeries(model, key, images, test, attack_epochs, searched_keys, trigger_steps, seed, stages)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "title": "Quickstart: one marked model, attacked and verified",
        "subtitle": "Handwritten digits, a ResNet of "
        f"{model.num_parameters() / 1e6:.2f} million parameters, marked with {_count_subkeys(key)}.",
        "seed": seed,
        "settings": {"epochs": epochs, "attack_epochs": attack_epochs, "distill_epochs": distill_epochs},
        "versions": {
            "hf_watermark": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "Python": platform.python_version(),
        },
        "data": {"name": "handwritten digits", "train_images": len(images), "test_images": len(test)},
        "twin": {"row": twin_row, "evidence": twin_evidence.to_dict()},
        "marked": {"row": marked_row, "evidence": marked_evidence.to_dict()},
        "attacks": rows,
        "forgeries": forgeries,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    write_output(output, record, trainer, owner)
    show_table(record, output, console)
    return record


# Training


def marks() -> list[WatermarkConfig]:
    """What the owner embeds, and the forger too."""
    return [GreedyResidualsConfig(), FunctionCoupledConfig(trigger_ratio=0.125)]


def _arguments(folder: str, epochs: float, seed: int) -> TrainingArguments:
    return TrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        seed=seed,
        use_cpu=True,  # a net of this size is as fast there, and the run is the same everywhere
        **QUIET,
    )


def train(
    stage: str, trainer_class: type[Trainer], data: Any, epochs: float, seed: int, stages: Stages, **fields: Any
) -> Any:
    """The trainer after its run: the same seed, data and recipe for twin and marked model."""
    with tempfile.TemporaryDirectory() as folder, stages(stage) as bar:
        trainer = trainer_class(
            model=build_digits_model(seed),
            args=_arguments(folder, epochs, seed),
            train_dataset=data,
            callbacks=[bar],
            **fields,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer


# Attacks and forgeries


def quickstart_attacks(epochs: float, distill_epochs: float, seed: int) -> dict[str, Attack]:
    """Ten removal attacks by label, the training ones up to and above the rate that the owner trained with."""
    tune: dict[str, Any] = {"epochs": epochs, "batch_size": BATCH_SIZE, "optimizer": "adamw", "seed": seed}
    return {
        "weight noise, 0.3 std": WeightNoise(0.3, seed=seed),
        "prune 50 %": MagnitudePrune(0.5),
        "prune 90 %": MagnitudePrune(0.9),
        "4-bit weights": UniformQuantize(4),
        "int8 weights": Int8Quantize(),
        "BatchNorm sign flips": FlipBatchNormSigns(seed=seed),
        "fine-tune, training rate": FineTune(learning_rate=LEARNING_RATE, **tune),
        "fine-tune, REFIT 3x rate": FineTune(learning_rate=3 * LEARNING_RATE, schedule="refit", **tune),
        "reset head, retrain all": ResetHead(learning_rate=LEARNING_RATE, scope="all", **tune),
        "soft distillation": Distill(
            epochs=distill_epochs, learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE, seed=seed
        ),
    }


def _attack_row(label: str, attack: Attack, model: PreTrainedModel, key: WatermarkKey, train: Any, test: Any) -> Row:
    row = survival_row(label, attack(model, train), key, test, model)
    return row | {"options": attack.options(), "budget": attack.budget(train)}


def run_forgeries(
    model: PreTrainedModel,
    key: WatermarkKey,
    train: Any,
    test: Any,
    epochs: float,
    searched_keys: int,
    trigger_steps: int,
    seed: int,
    stages: Stages,
) -> list[dict[str, Any]]:
    """Every forgery as JSON, with `remarks` for people."""
    results = []
    with stages("forgery: overwriting") as bar:
        forged: Any = overwrite(
            model, train, Owner.create(), marks(), epochs, LEARNING_RATE, BATCH_SIZE, seed, callbacks=[bar]
        )
        first = survival_row("overwritten", forged.model, key, test, model)
        results.append(forged.to_dict() | {"first_key": first, "remarks": _overwrite_remarks(forged, first)})
    with stages("forgery: counterfeit claims"):
        for result in counterfeit(model, key):
            free = result.details["bits_if_the_message_were_free"]
            remark = f"had the forger been free to name the message, {free} bits would match"
            results.append(result.to_dict() | {"remarks": [remark] if result.name == "counterfeit_secret" else []})
    with stages("forgery: adversarial triggers"):
        result = adversarial_triggers(model, key, steps=trigger_steps, seed=seed)
        reached, again = result.details["log2_p_if_accepted"], result.details["log2_p_recommitted"]
        remarks = [f"accepted as they are, the images would give log2 p = {reached}; under a new commitment {again}"]
        results.append(result.to_dict() | {"remarks": remarks})
    with stages("forgery: key search"):
        result = search_keys(model, key, searched_keys)
        expected = result.details["expected_log2_p"]
        results.append(
            result.to_dict() | {"remarks": [f"chance alone gives about {expected} for the best of so many"]}
        )
    return results


def _overwrite_remarks(forged: ForgeryResult, first: Row) -> list[str]:
    return [
        f"on the twice-marked copy the first key gives: {first['verdict']} (log2 p = {first['log2_p']}, accuracy "
        f"{percent(first['accuracy'])}); the second: {forged.details['own_copy_verdict']}",
    ]


def _count_subkeys(key: WatermarkKey) -> str:
    counts = {item.method.replace("_", " "): len(item.subkeys) for item in key.assignments}
    return " and ".join(f"{name} ({count} sub-key{'s' * (count > 1)})" for name, count in counts.items())


# Files


def refuse_foreign_folder(output: Path) -> None:
    """Only a new or empty folder, or one that a quickstart made, is written to; and never one where a key would be published."""
    refuse_model_folder(output / "key")
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"{output} is a file; choose another folder with --output")
    if output.exists() and any(output.iterdir()) and not (output / MARKER).exists():
        raise InvalidInput(f"{output} holds files that no quickstart made; choose another folder with --output")


def write_output(output: Path, record: dict[str, Any], trainer: Any, owner: Owner) -> None:
    """Replaces what an earlier quickstart wrote here, and nothing else."""
    refuse_foreign_folder(output)  # minutes have passed
    output.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(
        output / MARKER, b"Made by `hf-watermark quickstart`, which may replace model/, key/ and owner.json here.\n"
    )
    for name in ("model", "key"):
        if (output / name).exists():
            shutil.rmtree(output / name)
    (output / "owner.json").unlink(missing_ok=True)
    with warnings.catch_warnings():
        # The report says that keys of one's own need a passphrase.
        warnings.filterwarnings("ignore", message=".*stored without a passphrase")
        trainer.key.save(output / "key")
        owner.save(output / "owner.json")
    trainer.save_model(str(output / "model"))
    write_json_atomic(output / "evidence.json", record)
    write_report(record, output / "report.html")


@contextmanager
def _few_threads() -> Iterator[None]:
    before, level = torch.get_num_threads(), transformers.logging.get_verbosity()
    torch.set_num_threads(min(MOST_THREADS, before, os.cpu_count() or 1))
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        transformers.logging.set_verbosity(level)
