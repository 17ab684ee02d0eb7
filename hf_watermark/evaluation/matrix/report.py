"""`report.html` of a benchmark: made from the rows of the table only. Self-contained, no script."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...attacks.outcome import by_kind, tally
from ...serialization import write_bytes_atomic
from ..drawing import matplotlib
from ..glossary import explained
from ..plots import NARROW, SETTINGS, WIDTH, Plot, inline_svg
from ..report import environment, minus
from .plots import benchmark_plots, words
from .summary import AFFORDABLE_LOSS, MethodSummary, Outcome, is_attack, method_summaries, outcomes


Row = Mapping[str, Any]
WORDS = ("level", "log2 p", "model ruined", "removal attack", "retention", "stealing loss", "twin")
AFFORDABLE_POINTS = f"{100 * AFFORDABLE_LOSS:.0f}"


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
            wide, narrow = (benchmark_plots(section["outcomes"], width) for width in (WIDTH, NARROW))
            section["plots"] = {
                # Markup: drawn by matplotlib, which escapes the labels. No two sections share an id.
                kind: Plot(
                    Markup(inline_svg(wide[kind], f"{kind}{number}")),
                    Markup(inline_svg(narrow[kind], f"{kind}{number}n")),
                )
                for kind in wide
            }
    made = environment()
    made.filters |= {"points": points, "bits": bits, "budget": budget}
    return made.get_template("matrix.html.jinja").render(
        name=name,
        cards=summary_cards(rows, open_cells),
        sections=sections,
        open_cells=open_cells,
        affordable=AFFORDABLE_POINTS,
        glossary=explained(*WORDS),
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
    found, summaries, first = outcomes(rows), method_summaries(rows), rows[0]
    return {
        "name": f"{backbone}_{data}",
        "title": f"{backbone} on {data}",
        "methods": [(summary, sentence(summary)) for summary in summaries],
        "outcomes": found,
        "attacks": {
            summary.method: attack_groups(o for o in found if o.method == summary.method) for summary in summaries
        },
        "parameters": first["parameters"],
        "train_images": first["train_images"],
        "test_images": first["test_images"],
        "epochs": first["training_epochs"],
        "seeds": sorted({row["seed"] for row in rows}),
    }


def attack_groups(found: Iterable[Outcome]) -> dict[str, tuple[str, list[Outcome]]]:
    """The attacks among the outcomes by their kind, each kind with what became of the mark, in words."""
    groups = by_kind((outcome.attack_name, outcome) for outcome in found if is_attack(outcome))
    return {kind: (tally(member.fate for member in members), members) for kind, members in groups.items()}


def sentence(summary: MethodSummary) -> str:
    """Which attacks remove a method, in words."""
    if not summary.attacks + summary.ruined:
        return "not attacked yet"
    dear = f"{summary.costly} at {AFFORDABLE_POINTS} points or more" if summary.costly else ""
    if not summary.weakest:
        return dear or "none"
    named = ", ".join(f"{words(o.attack)} ({points(o.stealing_loss)})" for o in summary.weakest[:6])
    more = f" and {len(summary.weakest) - 6} more" if len(summary.weakest) > 6 else ""
    return f"{named}{more}{dear and '; ' + dear}"


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
            "note": f"at a cost below {AFFORDABLE_POINTS} points",
            "state": "good" if strongest else "plain",
        },
    ]


def points(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:+.1f} points".replace("-", "−")


def bits(outcome: Outcome) -> str:
    return "n/a" if outcome.log2_p is None else minus(outcome.log2_p, 0)


def budget(outcome: Outcome) -> str:
    """What an attack took, without what it did not need."""
    parts = {
        "epochs": f"{outcome.epochs:g}" if outcome.epochs else "",
        "steps": f"{outcome.steps}" if outcome.steps else "",
        "answers": f"{outcome.queries}" if outcome.queries else "",
        "s": f"{outcome.cpu_seconds:.0f}",
    }
    return ", ".join(f"{number} {name}" for name, number in parts.items() if number)
