"""
`model_cards/`: what a benchmark measured, made from the table and nothing else. One card per backbone, data set and method, and
`README.md`, an index that compares them, with plots.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ...publishing.card import TAG, escape
from ...serialization import write_bytes_atomic
from ..drawing import Figure, matplotlib
from ..glossary import explained
from ..plots import NARROW, SETTINGS
from ..report import TEMPLATES, percent
from .plots import benchmark_plots, words
from .report import AFFORDABLE_POINTS, WORDS, attack_groups, bits, budget, place_sections, points, sentence
from .summary import method_summaries, outcomes
from .table import file_digest, read_table


Row = Mapping[str, Any]
INDEX = "README.md"
PLOTS = {
    "heat": "Evidence after each attack",
    "retention": "Stealing loss against retention",
    "cost": "Cost of attack",
}


def write_cards(table: Path, folder: Path, command: str = "") -> list[Path]:
    """
    One card per backbone, data set and method of a table, and the index with its plots.

    Args:
        table (`Path`):
            The parquet file; its SHA-256 stands in each card.
        command (`str`, *optional*):
            How to make the table again.
    """
    rows, digest = read_table(table), file_digest(table)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for backbone, data, method in dict.fromkeys((row["backbone"], row["data"], row["method"]) for row in rows):
        own = [row for row in rows if (row["backbone"], row["data"], row["method"]) == (backbone, data, method)]
        path = folder / f"{backbone}_{data}_{method}.md"
        write_bytes_atomic(path, render_card(own, table.name, digest, command).encode())
        written.append(path)
    return [*written, *write_index(rows, folder, table.name, digest, command)]


def write_index(rows: Sequence[Row], folder: Path, table: str, digest: str, command: str) -> list[Path]:
    """The comparison of all cards, and its plots as PNG; arguments as of [`render_card`]."""
    sections, written = place_sections(rows), []
    for section in sections:
        section["plots"] = {}
        # A card cannot choose between two drawings, so it gets the one that a phone can show.
        for kind, figure in benchmark_plots(section["outcomes"], NARROW).items():
            path = folder / f"{section['name']}_{kind}.png"
            write_bytes_atomic(path, small_png(figure))
            section["plots"][kind] = path.name
            written.append(path)
    index = folder / INDEX
    fields: dict[str, Any] = {"table": table, "digest": digest, "command": command, "affordable": AFFORDABLE_POINTS}
    fields |= {"titles": PLOTS, "glossary": explained(*WORDS)}
    text = _environment().get_template("matrix_index.md.jinja").render(sections=sections, **fields)
    write_bytes_atomic(index, text.encode())
    return [index, *written]


def small_png(figure: Figure) -> bytes:
    """A figure at twice the size at which it is shown, in as many colours as a drawing needs."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(drawn, format="png", dpi=240)
    Image.open(drawn).convert("RGB").quantize(256).save(packed, format="png", optimize=True)
    return packed.getvalue()


def render_card(rows: Sequence[Row], table: str, digest: str, command: str) -> str:
    """
    The card of one method on one backbone and data set, with front matter and model-index.

    Args:
        rows:
            Its rows of the table.
        table, digest (`str`):
            Name and SHA-256 of the parquet file.
    """
    first = rows[0]
    [summary] = method_summaries(rows)
    text = (
        _environment()
        .get_template("matrix_card.md.jinja")
        .render(
            row=first,
            summary=summary,
            sentence=sentence(summary),
            groups=attack_groups(outcomes(rows)),
            seeds=sorted({row["seed"] for row in rows}),
            affordable=AFFORDABLE_POINTS,
            table=table,
            digest=digest,
            command=command,
            hardware=sorted({row["hardware"] for row in rows}),
            versions=sorted({row["versions"] for row in rows}),
        )
    )
    return str(ModelCard(f"---\n{card_data(rows).to_yaml()}\n---\n{text}"))


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "percent": percent,
        "points": points,
        "bits": bits,
        "words": words,
        "plain": escape,
        "budget": budget,
    }
    return made


def card_data(rows: Sequence[Row]) -> ModelCardData:
    """Tags and model-index of a card: accuracy, and how many attacks the mark survives."""
    [summary] = method_summaries(rows)
    first = rows[0]
    return ModelCardData(
        library_name="hf_watermark",
        pipeline_tag="image-classification",
        tags=[TAG, "watermark", *first["methods"]],
        model_name=f"{first['backbone']}_{first['data']}_{first['method']}",
        eval_results=model_index(rows, summary.survived / summary.attacks if summary.attacks else None),
    )


def model_index(rows: Sequence[Row], survived: float | None) -> list[EvalResult]:
    """model-index entries of one method: accuracy of marked model and twin (means over seeds), and the share of attacks survived."""
    [summary] = method_summaries(rows)
    values = {
        ("accuracy", "accuracy, marked"): summary.accuracy,
        ("twin_accuracy", "accuracy, unmarked twin"): summary.twin_accuracy,
        (
            "watermark_survival",
            "share of removal attacks, of those that leave half of the accuracy, that the mark survives",
        ): survived,
    }
    data: dict[str, Any] = {"dataset_type": rows[0]["data"], "dataset_name": rows[0]["data"], "dataset_split": "test"}
    return [
        EvalResult(
            task_type="image-classification", metric_type=kind, metric_name=name, metric_value=round(value, 4), **data
        )
        for (kind, name), value in values.items()
        if value is not None
    ]
