"""
The cells of a benchmark and where their results are kept.

A cell is the training of one model, or one attack on it with the check that follows. It is known by the SHA-256 of everything that
determines it, so a finished cell is found again whatever else in the config has changed, and never run twice.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...attacks import Attack
from ...serialization import InvalidInput, canonical_json, read_json, write_json_atomic
from ...serialization.schema import without_floats
from .backbones import backbone_identity
from .budgets import attack_options
from .config import BackboneSpec, DataSpec, MatrixConfig
from .data import data_identity


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


FORMAT = 2
RESULT_BYTES = 2**20
TWIN = "unmarked"
# Rows that are no attack: the marked model as it is, and its key on the unmarked twin.
NO_ATTACK, ON_TWIN = "none", "unmarked_twin"


def digest_of(identity: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(without_floats(identity))).hexdigest()


@dataclass(frozen=True)
class ModelCell:
    """
    Training of one model: marked, or the unmarked twin (`method` is then `unmarked` and `configs` is empty).

    Args:
        method, backbone, data (`str`):
            Labels of the config, for people; they are no part of the identity.
        configs (`tuple[dict]`):
            Full method configs, in the order of stacking.
    """

    method: str
    backbone: str
    data: str
    seed: int
    configs: tuple[dict[str, Any], ...]
    backbone_spec: BackboneSpec = field(repr=False)
    data_spec: DataSpec = field(repr=False)
    threads: int = 1
    device: str = "cpu"
    precision: str = "fp32"

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What marked model and twin have in common."""
        return {
            "format": FORMAT,
            "backbone": backbone_identity(self.backbone_spec),
            "data": data_identity(self.data_spec),
            "training": self.data_spec.training.plain(),
            "seed": self.seed,
            "threads": self.threads,
            "device": self.device,
            "precision": self.precision,
        }

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {"cell": "model", **self.recipe, "methods": list(self.configs)}

    @cached_property
    def id(self) -> str:
        return digest_of(self.identity)

    @property
    def twin(self) -> "ModelCell":
        """The cell of the unmarked model of the same seed, data and recipe."""
        spec = (self.backbone_spec, self.data_spec, self.threads, self.device, self.precision)
        return ModelCell(TWIN, self.backbone, self.data, self.seed, (), *spec)

    def secret(self, purpose: str) -> bytes:
        """
        32 bytes for one purpose, from the identity, so that any process makes the same key. Whoever has the config can compute them: a key
        of a benchmark is no secret.
        """
        return hashlib.sha256(f"hf_watermark/benchmark/{purpose}/{self.id}".encode()).digest()

    def seed_for(self, purpose: str) -> int:
        """A 31-bit seed from the recipe: the same for a marked model and its twin, another for each purpose."""
        text = f"hf_watermark/benchmark/{purpose}/{digest_of(self.recipe)}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class AttackCell:
    """
    One attack on one marked model, and the check of what comes out.

    Args:
        label (`str`):
            Of the attack, for people. `none`: the marked model itself; `unmarked_twin`: the key on the twin.
        attack ([`~attacks.Attack`], *optional*):
            `None` for these two.
        images (`int`, *optional*):
            How many training images the attacker has; `None` for all.
    """

    model: ModelCell
    label: str
    attack: Attack | None
    images: int | None

    @cached_property
    def options(self) -> dict[str, Any]:
        """The attack's name and options as plain JSON."""
        if self.attack is None:
            return {"name": self.label}
        return attack_options(self.attack)

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {"cell": "attack", "model": self.model.id, "attack": self.options, "images": self.images}

    @cached_property
    def id(self) -> str:
        return digest_of(self.identity)


Cell = ModelCell | AttackCell


@dataclass(frozen=True)
class Note:
    """
    Why a cell has no result.

    Args:
        failed (`bool`):
            `False` where it could not be tried: an optional library or the model is missing.
    """

    reason: str
    failed: bool = True


def model_cells(config: MatrixConfig) -> list[ModelCell]:
    """Every model of a benchmark, twins first."""
    cells: dict[str, ModelCell] = {}
    for data, data_spec in config.data.items():
        for backbone, backbone_spec in config.backbones.items():
            for seed in config.seeds:
                for method in config.methods:
                    precision = config.precision_of.get(method, config.precision)
                    spec = (backbone_spec, data_spec, config.threads, config.device, precision)
                    configs = tuple(item.to_dict() for item in config.method_configs(method))
                    cell = ModelCell(method, backbone, data, seed, configs, *spec)
                    cells.setdefault(cell.twin.id, cell.twin)
                    cells.setdefault(cell.id, cell)
    return sorted(cells.values(), key=lambda cell: cell.method != TWIN)


def attack_cells(config: MatrixConfig) -> list[AttackCell]:
    """Every check of a benchmark: each marked model as it is, its key on the twin, and each attack."""
    cells = []
    for model in model_cells(config):
        if model.method == TWIN:
            continue
        cells += [AttackCell(model, label, None, 0) for label in (NO_ATTACK, ON_TWIN)]
        listed = config.attack_list(model.data_spec, model.seed)
        cells += [AttackCell(model, label, attack, images) for label, (attack, images) in listed.items()]
    return cells


def models_of(check: AttackCell) -> tuple[ModelCell, ...]:
    """The models whose weights a check needs."""
    return (check.model, check.model.twin) if check.label == ON_TWIN else (check.model,)


class Store:
    """
    Results in a folder: `cells/<id>.json`, one finished cell each, the models under `models/` and `keys/`, and in `open/` why a cell has no
    result. A file takes its name when it is complete, so a killed run leaves finished cells or nothing.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        for name in ("cells", "models", "keys", "open"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """
        What a finished cell gave.

        Raises:
            [`~serialization.InvalidInput`]: when its file is damaged; delete it to run the cell again.
        """
        path = self._path(cell)
        if not path.exists():
            return None
        document = read_json(path, RESULT_BYTES, allow_floats=True)
        if document.get("id") != cell.id or not isinstance(document.get("result"), dict):
            raise InvalidInput(f"{path}: is not the result of this cell; delete it to run the cell again")
        return document["result"]

    def done(self, cell: Cell) -> bool:
        return self._path(cell).exists()

    def complete(self, cell: Cell) -> bool:
        """Whether there is nothing to run: of a model that was taken over from a table the weights are missing."""
        return self.done(cell) and (isinstance(cell, AttackCell) or self.model_folder(cell).exists())

    def still_open(self, cells: Sequence[Cell], checks: Sequence[AttackCell]) -> list[Cell]:
        """
        What is left to run of `cells`: those without a result, and models that were taken over from a table without their weights where one
        of the `checks` that are not finished needs these.
        """
        used: set[str] = set()
        for check in checks:
            if not self.done(check):
                used |= {model.id for model in models_of(check)}
        return [
            cell
            for cell in cells
            if not self.done(cell)
            or (isinstance(cell, ModelCell) and cell.id in used and not self.model_folder(cell).exists())
        ]

    def write(self, cell: Cell, result: dict[str, Any]) -> None:
        write_json_atomic(self._path(cell), {"id": cell.id, "identity": cell.identity, "result": result})
        self._note_path(cell).unlink(missing_ok=True)

    def obstacle(self, cell: Cell) -> Note | None:
        """Why a cell cannot be tried: an attack needs its models."""
        for model in models_of(cell) if isinstance(cell, AttackCell) else ():
            if not self.complete(model):
                return Note(f"its model ({model.method}) is not finished", failed=False)
        return None

    def leave_open(self, cell: Cell, note: Note) -> None:
        write_json_atomic(self._note_path(cell), asdict(note))

    def note(self, cell: Cell) -> Note | None:
        """What the last run said of a cell that it left open."""
        path = self._note_path(cell)
        if self.done(cell) or not path.exists():
            return None
        document = read_json(path, RESULT_BYTES)
        return Note(str(document.get("reason")), document.get("failed") is not False)

    @contextmanager
    def held(self, cell: Cell) -> Iterator[None]:
        """
        Nobody else runs this cell meanwhile, on any machine that sees the folder: the rest of a killed run neither. The system lets go of it
        when the last process that holds it ends. Where the file system has no locks only this is lost.
        """
        path = self.folder / "open" / f"{cell.id}.lock"
        with path.open("w") as file:
            if fcntl is not None:
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX)
            yield
            if self.complete(cell):  # else somebody may wait for this very file
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def model_folder(self, cell: ModelCell) -> Path:
        return self.folder / "models" / cell.id

    def key_folder(self, cell: ModelCell) -> Path:
        return self.folder / "keys" / cell.id

    def clear(self, cell: ModelCell) -> None:
        """Removes what there may be of a model, the rest of a killed training above all: its result first, which says that it is complete."""
        self._path(cell).unlink(missing_ok=True)
        for folder in (self.model_folder(cell), self.key_folder(cell)):
            if folder.exists():
                shutil.rmtree(folder)

    def _note_path(self, cell: Cell) -> Path:
        return self.folder / "open" / f"{cell.id}.json"

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.id}.json"
