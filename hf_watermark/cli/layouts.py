"""`hf-watermark inspect MODEL --layout`: where marks in weights would lie in a model, and how much fits."""

from typing import TYPE_CHECKING, Any

import typer

from ..serialization import InvalidInput


if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from ..backbones import Carrier

TIMM = "timm:"
CLASSES = 1000
ADVICE = "give the folder or repository of a classifier or segmentation model of transformers or timm"


def layout_of_model(model: str) -> dict[str, Any]:
    """
    The layout of a model as plain data. Only its config is read, and no number of it.

    Args:
        model (`str`):
            A folder with `config.json`, a repository, or `timm:ARCHITECTURE`.
    """
    from ..backbones import layout_table

    layout = layout_table(_without_numbers(model))
    carriers = {carrier.name: carrier for carrier in layout.carriers}
    rows = [
        {
            "tensor": row.name,
            "shape": list(row.shape),
            "role": row.role,
            "bits": _bits([carriers[row.name]]) if row.name in carriers else {},
            "scale": row.scale,
            "centred": row.centred,
        }
        for row in layout.rows
    ]
    return {"model": model, "rows": rows, "capacity": _capacity(layout.carriers)}


def _bits(carriers: "Sequence[Carrier]") -> dict[str, int]:
    """By method that reads weights: the most bits of one sub-key."""
    return {method: item["most_bits"] for method, item in _capacity(carriers).items()}


def _capacity(carriers: "Sequence[Carrier]") -> dict[str, dict[str, int]]:
    """The same, with the default number of bits, and how many sub-keys of these fit."""
    from ..mapping import METHODS, method_entry

    found = {}
    for method in METHODS:
        entry = method_entry(method)
        config = entry.load("Config")() if entry.access == "weights" else None
        capacity = None if config is None else entry.facts.capacity(config, carriers)
        if capacity is not None:
            bits = getattr(config, entry.facts.field)
            found[method] = {"most_bits": capacity.most_units, "bits": bits, "subkeys": capacity.subkeys}
    return found


def _without_numbers(model: str) -> "nn.Module":
    import torch

    from ..backbones.loading import backbone_config, model_class_of
    from ..serialization import parse_json
    from ..suspects.source import Source

    if model.startswith(TIMM):
        record: dict[str, Any] = {"architecture": model.removeprefix(TIMM), "num_classes": CLASSES}
    else:
        source = Source.open(model)
        raw = source.read("config.json")
        if raw is None:
            raise InvalidInput(f"{model}: holds no config.json; {ADVICE}")
        record = parse_json(raw, allow_floats=True)
    if "architecture" in record:
        record.setdefault("model_type", "timm_wrapper")
    from ..backbones.allowed import recordable

    config = backbone_config(recordable(record), ADVICE)
    with torch.device("meta"):
        return model_class_of(config)(config)


def show_layout(found: dict[str, Any]) -> None:
    """As a table on stdout, carriers and anchors in the order of the file, with the bits of the first method."""
    from ..backbones.report import in_columns

    methods = list(found["capacity"])
    cells = [["tensor", "shape", "role", f"bits, {methods[0]}", "scale behind"]]
    for row in found["rows"]:
        role = f"{row['role']}, centred" if row["centred"] else row["role"]
        bits = str(row["bits"].get(methods[0], ""))
        cells.append([row["tensor"], " x ".join(map(str, row["shape"])), role, bits, row["scale"] or ""])
    typer.echo(in_columns(cells))
    for method, item in found["capacity"].items():
        typer.echo(
            f"{method}: at most {item['most_bits']} bits in one sub-key; {item['subkeys']} sub-keys of {item['bits']} bits by default"
        )
