"""`report.html`: one self-contained page about one marked model, its attacks and the forgeries."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..evidence import Verdict
from ..serialization import write_bytes_atomic
from .plots import decoy_plot, methods_of, survival_plot


TEMPLATES = Path(__file__).parent / "templates"


def render_report(record: Mapping[str, Any]) -> str:
    """
    The page as text. All words in `record` are escaped; nothing outside the page is referenced, no script is in it.

    Args:
        record:
            What [`run_quickstart`] returns, or the content of its `evidence.json`.
    """
    methods = [method["method"] for method in methods_of(record["marked"]["evidence"])]
    rows = [record["twin"]["row"], record["marked"]["row"], *record["attacks"]]
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            record=record,
            cards=summary_cards(record),
            methods=methods,
            rows=rows,
            found=Verdict.FOUND,
            # The only two values that are markup: drawn by matplotlib, which escapes the labels in them.
            survival=Markup(survival_plot(rows, methods)),
            decoys=Markup(decoy_plot(record["marked"]["evidence"])),
            removed=[row["attack"] for row in record["attacks"] if row["verdict"] != Verdict.FOUND],
        )
    )


def environment() -> Environment:
    """Templates in which every value is escaped and a missing one is an error."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = percent
    return made


def write_report(record: Mapping[str, Any], path: str | Path) -> Path:
    write_bytes_atomic(path, render_report(record).encode())
    return Path(path)


def percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.1f} %"


def summary_cards(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures at the top of the page: `title`, `value`, `note` and `state` (`good`, `bad` or `plain`)."""
    marked, twin = record["marked"], record["twin"]
    survived = sum(row["verdict"] == Verdict.FOUND for row in record["attacks"])
    passed = sum(forgery["passed"] for forgery in record["forgeries"])
    found, clean = marked["row"]["verdict"] == Verdict.FOUND, twin["row"]["verdict"] == Verdict.NOT_FOUND
    difference = 100 * (marked["row"]["accuracy"] - twin["row"]["accuracy"])
    return [
        {
            "title": "Marked model",
            "value": marked["row"]["verdict"],
            "note": f"log2 p = {marked['row']['log2_p']:.0f}",
            "state": "good" if found else "bad",
        },
        {
            "title": "Unmarked twin",
            "value": twin["row"]["verdict"],
            "note": f"log2 p = {twin['row']['log2_p']:.1f}, same key",
            "state": "good" if clean else "bad",
        },
        {
            "title": "Accuracy",
            "value": percent(marked["row"]["accuracy"]),
            "note": f"{difference:+.1f} points against the twin",
            "state": "plain",
        },
        {
            "title": "Removal attacks",
            "value": f"{survived} of {len(record['attacks'])} survived",
            "note": "mark still found afterwards",
            "state": "plain",
        },
        {
            "title": "Forgeries",
            "value": f"{len(record['forgeries']) - passed} of {len(record['forgeries'])} failed",
            "note": "false claims that were not accepted",
            "state": "good" if passed == 0 else "bad",
        },
    ]
