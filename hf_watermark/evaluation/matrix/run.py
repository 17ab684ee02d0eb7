"""Runs the cells of a benchmark, one after the other, in this process."""

import math
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ...attacks import NotApplicableError
from ...attacks.training import QUIET, collate
from ...keys import Owner, WatermarkKey
from ...mapping import AutoTrainer, AutoWatermarkConfig
from ...marking import plan_key
from ...serialization.confined import one_line
from ...training.embedding import TrainingData
from ...training.trainer import stack_trainers
from ...training.triggers import without_rows
from ..hardware import hardware, versions
from ..survival import accuracy, read_mark, survival_row
from .backbones import build_backbone
from .budgets import attack_budget
from .cells import NO_ATTACK, ON_TWIN, AttackCell, Cell, ModelCell, Note, Store
from .config import DataSpec
from .data import LoadedData, load_data


Result = dict[str, Any]
Report = Callable[[Cell, Result], None]
# What fails once may have been short of memory; what fails twice fails.
ATTEMPTS = 2


class CellRunner:
    """
    Runs cells and writes their results into a [`Store`]. Keeps the data set and the model of the last cell, because neighbours share them.
    """

    def __init__(self, store: Store, on_result: Report | None = None):
        self.store, self.on_result = store, on_result
        self._data: tuple[DataSpec, LoadedData] | None = None
        # Not a cached method: that would keep this object, and every model, alive for good.
        self._load = cache(self._load_uncached)

    def run(self, cells: Sequence[Cell]) -> None:
        """Runs these cells in this order; [`Store.still_open`] says which are worth it."""
        for cell in cells:
            self.settle(cell, self.attempt)

    def settle(self, cell: Cell, attempt: Callable[[Cell], Note | None]) -> None:
        """Tries a cell, once more if it fails, and then notes why it stays open, so that the others go on."""
        with self.store.held(cell):
            if self.store.complete(cell):  # by another run meanwhile, or the rest of a killed one
                return
            note = self.store.obstacle(cell)
            if note is None:
                for _ in range(ATTEMPTS):
                    note = attempt(cell)
                    if note is None or not note.failed:
                        break
            if note is not None:
                self.store.leave_open(cell, note)

    def attempt(self, cell: Cell) -> Note | None:
        """Runs a cell in this process and writes its result, or says why there is none."""
        torch.set_num_threads(model_of(cell).threads)
        # What `accelerate launch --mixed_precision` sets: it reaches the Trainers of owner and attackers alike.
        os.environ["ACCELERATE_MIXED_PRECISION"] = {"fp32": "no", "bf16": "bf16"}[model_of(cell).precision]
        begin, cpu = time.perf_counter(), time.process_time()
        try:
            result = self.train(cell) if isinstance(cell, ModelCell) else self.attack(cell)
        except ImportError as error:
            return Note(one_line(error)[:500], failed=False)
        except Exception as error:
            traceback.print_exc()
            return Note(f"{type(error).__name__}: {one_line(error)}"[:500])
        result["seconds"] = round(time.perf_counter() - begin, 2)
        result["cpu_seconds"] = round(time.process_time() - cpu, 2)
        self.store.write(cell, result | {"hardware": hardware(), "versions": versions()})
        if self.on_result is not None:
            self.on_result(cell, result)
        return None

    # One marked model, or the twin

    def train(self, cell: ModelCell) -> Result:
        published = self.store.result(cell)
        self.store.clear(cell)
        data = self.data(cell.data_spec)
        model = build_backbone(cell.backbone_spec, data.classes, data.shape, cell.seed_for("initialisation"))
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(cell, model, data.train, folder)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        trained = trainer.model.cpu().eval()
        trained.save_pretrained(self.store.model_folder(cell))
        if cell.configs:
            with warnings.catch_warnings():
                # A key of a benchmark is no secret.
                warnings.filterwarnings("ignore", message=".*stored without a passphrase")
                trainer.key.save(self.store.key_folder(cell))
        steps = math.ceil(len(trainer.train_dataset) / cell.data_spec.training.batch_size)
        right = accuracy(trained, data.test)
        if published is not None and published["accuracy"] != right:
            warnings.warn(
                f"{cell.method}, seed {cell.seed}: has an accuracy of {right} trained on this machine and of {published['accuracy']} in the "
                "table that rows were taken from; its rows are of two models",
                stacklevel=2,
            )
        return {
            "accuracy": right,
            "parameters": trained.num_parameters(),
            "epochs": cell.data_spec.training.epochs,
            "steps": math.ceil(cell.data_spec.training.epochs * steps),
            "train_images": len(trainer.train_dataset),
            "test_images": len(data.test),
        }

    # One attack, and the check

    def attack(self, cell: AttackCell) -> Result:
        model, key = self.load(cell.model), self.key(cell.model)
        data = self.data(cell.model.data_spec)
        set_seed(int(cell.id[:8], 16) >> 1)
        if cell.label == NO_ATTACK:
            return self.row(cell, model, key, data)
        if cell.label == ON_TWIN:
            return self.row(cell, self.load(cell.model.twin), key, data)
        assert cell.attack is not None
        images = attacker_images(data.train, key, cell.images)
        budget = attack_budget(cell.attack, images)
        try:
            attacked = cell.attack(model, images)
        except (NotApplicableError, FloatingPointError) as error:
            verdict = "n/a" if isinstance(error, NotApplicableError) else "diverged"
            return {"verdict": verdict, "reason": str(error)[:500]} | budget
        return self.row(cell, attacked, key, data) | budget

    def row(self, cell: AttackCell, suspect: PreTrainedModel, key: WatermarkKey, data: LoadedData) -> Result:
        known = suspect.config.num_labels == data.classes
        original = self.load(cell.model)
        evidence = read_mark(suspect, key, original, key.beacon)
        row = survival_row(cell.label, suspect, key, data.test, original, known, evidence)
        return {name: value for name, value in row.items() if name != "attack"} | {
            "matches": evidence.matches,
            "trials": evidence.trials,
            "check_queries": int(evidence.details.get("queries", 0)),
        }

    # What cells share

    def data(self, spec: DataSpec) -> LoadedData:
        if self._data is None or self._data[0] != spec:
            self._data = spec, load_data(spec)
        return self._data[1]

    def load(self, cell: ModelCell) -> PreTrainedModel:
        if self._load.cache_info().currsize > 2:  # a marked model and its twin
            self._load.cache_clear()
        return self._load(self.store.model_folder(cell), cell.device)

    @staticmethod
    def _load_uncached(folder: Path, device: str) -> PreTrainedModel:
        return AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).to(device).eval()

    def key(self, cell: ModelCell) -> WatermarkKey:
        return WatermarkKey.load(self.store.key_folder(cell))


def make_trainer(cell: ModelCell, model: PreTrainedModel, train: Any, folder: str) -> Any:
    """The Trainer of a cell: plain for the twin, else of its methods, with a key that follows from the cell's identity."""
    training = cell.data_spec.training
    arguments = TrainingArguments(
        folder,
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup_steps,
        lr_scheduler_type=training.schedule,
        seed=cell.seed_for("training"),
        use_cpu=cell.device == "cpu",
        **QUIET,
        dataloader_pin_memory=cell.device != "cpu",
    )
    if not cell.configs:
        trainer = Trainer(model=model, args=arguments, train_dataset=train, data_collator=collate)
        trainer.model_accepts_loss_kwargs = False  # as in every marking trainer
        return trainer
    configs = [AutoWatermarkConfig.from_dict(item) for item in cell.configs]
    stacked = stack_trainers(*(AutoTrainer.for_method(config.method) for config in configs))
    owner = Owner.of(cell.secret("owner"))
    planned = plan_key(model, TrainingData(train, collate), configs, owner, cell.secret("key"))
    # Bound as an owner is told to do before training, so that level B is enough for a verdict.
    key = planned.bind_beacon(cell.secret("beacon"), "a value of this benchmark")
    return stacked(model=model, args=arguments, train_dataset=train, data_collator=collate, watermark=configs, key=key)


def attacker_images(train: Any, key: WatermarkKey, most: int | None) -> Any:
    """
    The first `most` training images, without those that the key's checks are made of: whoever trained on the queries themselves would
    say nothing about other attackers.
    """
    rows = [int(row) for name, tensor in key.pool.items() if name.endswith(".rows") for row in tensor.tolist()]
    rest = without_rows(train, sorted(set(rows)))
    return torch.utils.data.Subset(rest, range(min(most or len(rest), len(rest))))


def model_of(cell: Cell) -> ModelCell:
    return cell if isinstance(cell, ModelCell) else cell.model


def describe_cell(cell: Cell) -> str:
    model = model_of(cell)
    place = f"{model.method}, {model.backbone} on {model.data}, seed {model.seed}"
    return f"{cell.label} on {place}" if isinstance(cell, AttackCell) else place


def describe_result(cell: Cell, result: Result) -> str:
    """One line for people."""
    if isinstance(cell, ModelCell):
        return f"trained {describe_cell(cell)}: accuracy {result['accuracy']:.4f} ({result['cpu_seconds']:.0f} s CPU)"
    known = "" if result.get("accuracy") is None else f", accuracy {result['accuracy']:.4f}"
    strength = "" if result.get("log2_p") is None else f", log2 p = {result['log2_p']}"
    return f"{describe_cell(cell)}: {result['verdict']}{strength}{known} ({result['cpu_seconds']:.0f} s CPU)"
