"""Trying keys on models that carry no mark: the measurements behind null tables and false-positive rates."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PrinterCallback

from ..configuration import WatermarkConfig
from ..keys import Owner
from ..mapping import AutoVerifier, method_entry
from ..marking import plan_key
from ..package import VERSION
from ..serialization.schema import validated
from ..suspects import Suspect
from ..verification.null_table import SCHEMA, NullTable, entry_of
from .hardware import hardware
from .matrix.backbones import build_backbone
from .matrix.cells import TWIN, ModelCell
from .matrix.config import BackboneSpec, DataSpec
from .matrix.data import LoadedData
from .matrix.run import make_trainer


# Of each fresh key the positions or triggers are new; its decoys draw only the bits or labels anew, which is what the null speaks of.
DECOYS_PER_KEY = 25


def train_null_models(backbone: BackboneSpec, data_spec: DataSpec, data: LoadedData, count: int) -> Iterable[Any]:
    """Independently initialised and trained models without a mark, one at a time."""
    for seed in range(count):
        cell = ModelCell(TWIN, "null", "null", seed, (), backbone, data_spec)
        model = build_backbone(backbone, data.classes, data.shape, cell.seed_for("initialisation"))
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(cell, model, data.train, folder)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        yield trainer.model.eval()


def null_scores(
    config: WatermarkConfig, model: PreTrainedModel, train: Any, keys: int, decoys: int = DECOYS_PER_KEY
) -> list[tuple[float, float]]:
    """
    log2 p and match rate of `keys` keys on a model that carries none of their marks. One in `decoys` keys is fresh in every respect; the others
    keep its positions or triggers and draw all bits or labels anew.
    """
    scores: list[tuple[float, float]] = []
    suspect = Suspect.open(model)
    while len(scores) < keys:
        [claim] = plan_key(model, train, config, Owner.create()).claims()
        verifier = AutoVerifier.for_method(config.method)(claim)
        subkey = claim.subkeys[0]
        observation = verifier.observe(suspect, subkey)
        for number in range(min(decoys, keys - len(scores))):
            part = verifier.score(observation, subkey if number == 0 else subkey.decoy())
            scores.append((part.log2_p, part.rate))
    return scores


def measure_null_table(
    models: Iterable[PreTrainedModel],
    data: LoadedData,
    configs: Mapping[str, WatermarkConfig],
    keys: int,
    names: tuple[str, str],
    on_model: Callable[[int], None] | None = None,
) -> NullTable:
    """
    Tries `keys` fresh keys per method on each null model.

    Args:
        configs (`Mapping[str, WatermarkConfig]`):
            By method.
        names (`tuple[str, str]`):
            Of backbone and data set, for readers of the table.
    """
    scores: dict[str, list[tuple[float, float]]] = {method: [] for method in configs}
    count = 0
    for model in models:
        for method, config in configs.items():
            scores[method] += null_scores(config, model, data.train, keys)
        count += 1
        if on_model is not None:
            on_model(count)
    entries = [
        entry_of(method, config.to_dict(), [p for p, _ in scores[method]], [rate for _, rate in scores[method]])
        for method, config in configs.items()
    ]
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "backbone": names[0],
        "data": names[1],
        "models": count,
        "keys": keys,
        "library_version": VERSION,
        "hardware": hardware(),
        "entries": [entry.plain() for entry in entries],
    }
    return validated(NullTable, fields, "null table")


def default_configs(methods: Sequence[str]) -> dict[str, WatermarkConfig]:
    return {method: method_entry(method).load("Config")() for method in methods}
