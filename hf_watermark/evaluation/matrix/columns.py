"""The columns of a benchmark's table: what each is, what makes it, and where it is stored."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from ...mapping import AutoWatermarkConfig, method_entry
from ..retention import best_retention, embedding_loss, stealing_loss
from .cells import AttackCell, ModelCell
from .data import class_count


class Check(NamedTuple):
    """A finished check: its cell, what it gave, and what the trainings of the marked model and of its twin gave."""

    cell: AttackCell
    result: dict[str, Any]
    marked: dict[str, Any]
    twin: dict[str, Any]

    @property
    def model(self) -> ModelCell:
        return self.cell.model

    @property
    def accuracy(self) -> float | None:
        return self.result.get("accuracy")

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Each method's result with its null, which follows from its config and the number of labels."""
        configs = {item["method"]: AutoWatermarkConfig.from_dict(item) for item in self.model.configs}
        classes = class_count(self.model.data_spec)
        nulls = {name: method_entry(name).facts.null(config, classes) for name, config in configs.items()}
        return [
            {"method": name, **part, "chance": nulls[name].chance, "shared": nulls[name].shared}
            for name, part in self.result.get("methods", {}).items()
        ]


class Column(NamedTuple):
    """
    One column of the table.

    Args:
        kind (`str`):
            `text`, `whole`, `number`, `texts` or `parts`.
        make (`Callable`, *optional*):
            Its value, where it follows from others.
        stored_in (`tuple[str]`):
            Where it is stored as it is: in the `result`, or in that of the `marked` model and its `twin`, which agree.
        name (`str`):
            Its name there, if it is another.
        default:
            Where nothing is stored.
    """

    kind: str
    make: Callable[[Check], Any] | None = None
    stored_in: tuple[str, ...] = ()
    name: str = ""
    default: Any = None


def _result(kind: str, default: Any = None) -> Column:
    return Column(kind, stored_in=("result",), default=default)


def _model(kind: str, name: str, *models: str) -> Column:
    return Column(kind, stored_in=models or ("marked", "twin"), name=name)


# Of one method in a row. Tables of earlier versions have no null: their retention was computed all the same.
NULL = {"chance": "number", "shared": "whole"}
PART = {
    "method": "text",
    "matches": "whole",
    "trials": "whole",
    "log2_p": "number",
    "level": "text",
    "verdict": "text",
}
PART |= NULL
COLUMNS: dict[str, Column] = {
    "method": Column("text", lambda check: check.model.method),
    "methods": Column("texts", lambda check: [item["method"] for item in check.model.configs]),
    "backbone": Column("text", lambda check: check.model.backbone),
    "data": Column("text", lambda check: check.model.data),
    "seed": Column("whole", lambda check: check.model.seed),
    "attack": Column("text", lambda check: check.cell.label),
    "attack_name": Column("text", lambda check: check.cell.options["name"]),
    "attack_options": Column(
        "text", lambda check: json.dumps({k: v for k, v in check.cell.options.items() if k != "name"})
    ),
    "epochs": _result("number", 0.0),
    "steps": _result("whole", 0),
    "examples": _result("whole", 0),
    "queries": _result("whole", 0),
    "attacker_images": _result("whole", 0),
    "accuracy": _result("number"),
    "marked_accuracy": _model("number", "accuracy", "marked"),
    "twin_accuracy": _model("number", "accuracy", "twin"),
    "stealing_loss": Column(
        "number",
        lambda check: None if check.accuracy is None else stealing_loss(check.twin["accuracy"], check.accuracy),
    ),
    "embedding_loss": Column("number", lambda check: embedding_loss(check.twin["accuracy"], check.marked["accuracy"])),
    "retention": Column(
        "number", lambda check: None if check.result.get("log2_p") is None else best_retention(check.parts)
    ),
    "matches": _result("whole"),
    "trials": _result("whole"),
    "match_rate": Column(
        "number",
        lambda check: check.result["matches"] / check.result["trials"] if check.result.get("trials") else None,
    ),
    "log2_p": _result("number"),
    "level": _result("text"),
    "verdict": _result("text"),
    "reason": _result("text"),
    "parts": Column("parts", lambda check: check.parts),
    "not_checked": _result("texts", []),
    "relative_distance": _result("number"),
    "check_queries": _result("whole", 0),
    "cpu_seconds": _result("number"),
    "seconds": _result("number"),
    "training_cpu_seconds": _model("number", "cpu_seconds", "marked"),
    "parameters": _model("whole", "parameters"),
    "train_images": _model("whole", "train_images"),
    "test_images": _model("whole", "test_images"),
    "training_epochs": _model("number", "epochs"),
    "precision": Column("text", lambda check: check.model.precision),
    "device": Column("text", lambda check: check.model.device),
    "hardware": _result("text"),
    "versions": Column(
        "text",
        lambda check: ", ".join(f"{name} {number}" for name, number in sorted(check.result["versions"].items())),
    ),
    "cell": Column("text", lambda check: check.cell.id),
    "model_cell": Column("text", lambda check: check.model.id),
}


def table_row(
    cell: AttackCell, result: dict[str, Any], marked: dict[str, Any], twin: dict[str, Any]
) -> dict[str, Any]:
    check = Check(cell, result, marked, twin)
    return {
        name: column.make(check)
        if column.make
        else getattr(check, column.stored_in[0]).get(column.name or name, column.default)
        for name, column in COLUMNS.items()
    }


def results_of(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What [`table_row`] made a row of: the results of the check, of the marked model, and of the twin as far as rows tell."""
    results: dict[str, dict[str, Any]] = {"result": {}, "marked": {}, "twin": {}}
    for name, column in COLUMNS.items():
        for result in column.stored_in:
            if row[name] is not None:
                results[result][column.name or name] = row[name]
    check = results["result"]
    check["methods"] = {
        part["method"]: {name: part[name] for name in PART if name not in ("method", *NULL)} for part in row["parts"]
    }
    check["versions"] = dict(entry.rsplit(" ", 1) for entry in row["versions"].split(", "))
    return check, results["marked"], results["twin"]
