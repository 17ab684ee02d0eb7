"""`report.html` of a benchmark: made from the rows of the table only. Self-contained, no script."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...serialization import write_bytes_atomic
from ..drawing import matplotlib
from ..plots import SETTINGS, inline_svg
from ..report import environment
from .plots import benchmark_plots, words
from .summary import AFFORDABLE_LOSS, MethodSummary, Outcome, is_attack, method_summaries, outcomes


Row = Mapping[str, Any]


def render_matrix_report(rows: Sequence[Row], name: str, open_cells: int = 0) -> str:
    """
    The page as text. Everything in it follows from the rows; all words are escaped, nothing outside the page is referenced.

    Args:
        rows:
            Rows of the table.
        open_cells (`int`, *optional*):
            Checks that are not finished yet; the page says so.
    """
    sections = place_sections(rows)
    with matplotlib.rc_context(SETTINGS):
        for number, section in enumerate(sections):
            # The only values that are markup: drawn by matplotlib, which escapes the labels in them. No two sections share an id.
            section["plots"] = {
                kind: Markup(inline_svg(figure, f"{kind}{number}"))
                for kind, figure in benchmark_plots(section["outcomes"]).items()
            }
    made = environment()
    made.filters |= {"words": words, "points": points, "bits": bits}
    return made.get_template("matrix.html.jinja").render(
        name=name,
        cards=summary_cards(rows, open_cells),
        sections=sections,
        open_cells=open_cells,
        affordable=100 * AFFORDABLE_LOSS,
        hardware=sorted({row["hardware"] for row in rows}),
        versions=sorted({row["versions"] for row in rows}),
    )


def write_matrix_report(rows: Sequence[Row], path: Path, name: str, open_cells: int = 0) -> Path:
    write_bytes_atomic(path, render_matrix_report(rows, name, open_cells).encode())
    return path


def place_sections(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What there is to say about each backbone and data set, without plots; for the page and for the index of the cards."""
    return [
        _section(backbone, data, [row for row in rows if (row["backbone"], row["data"]) == (backbone, data)])
        for backbone, data in dict.fromkeys((row["backbone"], row["data"]) for row in rows)
    ]


def _section(backbone: str, data: str, rows: Sequence[Row]) -> dict[str, Any]:
    found, first = outcomes(rows), rows[0]
    return {
        "name": f"{backbone}_{data}",
        "title": f"{backbone} on {data}",
        "methods": [(summary, sentence(summary)) for summary in method_summaries(rows)],
        "outcomes": found,
        "attacks": [outcome for outcome in found if is_attack(outcome)],
        "parameters": first["parameters"],
        "train_images": first["train_images"],
        "test_images": first["test_images"],
        "epochs": first["training_epochs"],
        "seeds": sorted({row["seed"] for row in rows}),
    }


def sentence(summary: MethodSummary) -> str:
    """Which attacks remove a method, in words."""
    if not summary.attacks:
        return "not attacked yet"
    if not summary.weakest:
        lost = f"; {len(summary.costly)} remove it together with the accuracy" if summary.costly else ""
        return f"no attack removes it at an affordable loss{lost}"
    named = ", ".join(f"{words(o.attack)} ({points(o.stealing_loss)})" for o in summary.weakest[:6])
    more = f" and {len(summary.weakest) - 6} more" if len(summary.weakest) > 6 else ""
    return f"removed by {named}{more}"


def summary_cards(rows: Sequence[Row], open_cells: int) -> list[dict[str, str]]:
    """The figures at the top of the page."""
    every = method_summaries(rows)
    false_alarms, keys = sum(summary.false_alarms for summary in every), sum(summary.seeds for summary in every)
    strongest = [summary.method for summary in every if summary.attacks and not summary.weakest]
    found = sum(summary.found for summary in every)
    return [
        {
            "title": "Marked models",
            "value": f"{found} of {keys} found",
            "note": "without an attack",
            "state": "good" if found == keys else "bad",
        },
        {
            "title": "Unmarked twins",
            "value": f"{false_alarms} false alarms",
            "note": f"{keys} keys, each on the twin of its model",
            "state": "bad" if false_alarms else "good",
        },
        {
            "title": "Checks",
            "value": str(len(rows)),
            "note": f"{open_cells} not finished" if open_cells else "all finished",
            "state": "bad" if open_cells else "plain",
        },
        {
            "title": "No attack removes",
            "value": ", ".join(words(name) for name in strongest) or "none",
            "note": f"at a cost below {100 * AFFORDABLE_LOSS:.0f} points",
            "state": "good" if strongest else "plain",
        },
    ]


def points(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:+.1f} points"


def bits(outcome: Outcome) -> str:
    return "n/a" if outcome.log2_p is None else f"{outcome.log2_p:.0f}"
