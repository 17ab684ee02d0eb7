"""`report.html`: one self-contained page about one marked model, its attacks and the forgeries."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..attacks.outcome import REMOVED, RUINED, SURVIVED, by_kind, is_ruined, tally
from ..evidence import Verdict
from ..serialization import write_bytes_atomic
from .glossary import explained
from .plots import decoy_plot, drawn, methods_of, survival_plot


TEMPLATES = Path(__file__).parent / "templates"
UNTOUCHED = "not attacked"
FATES = {Verdict.FOUND: SURVIVED, Verdict.NOT_FOUND: REMOVED}


def render_report(record: Mapping[str, Any]) -> str:
    """
    The page as text. All words in `record` are escaped; nothing outside the page is referenced, no script is in it.

    Args:
        record:
            What [`run_quickstart`] returns, or the content of its `evidence.json`.
    """
    methods = [method["method"] for method in methods_of(record["marked"]["evidence"])]
    unattacked = [record[name]["row"] | {"fate": UNTOUCHED} for name in ("twin", "marked")]
    attacked = attacked_rows(record)
    rows = [*unattacked, *attacked]
    ruined = [place for place, row in enumerate(rows) if row["fate"] == RUINED]
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            record=record,
            cards=summary_cards(record),
            methods=methods,
            unattacked=unattacked,
            groups={
                kind: (tally(row["fate"] for row in members), members)
                for kind, members in by_kind((row.get("options", {}).get("name"), row) for row in attacked).items()
            },
            survival=drawn(lambda width: survival_plot(rows, methods, ruined, width)),
            decoys=drawn(lambda width: decoy_plot(record["marked"]["evidence"], width)),
            removed=[row["attack"] for row in attacked if row["fate"] not in (SURVIVED, RUINED)],
            glossary=explained(
                "beacon", "decoy key", "level", "log2 p", "model ruined", "removal attack", "sub-key", "twin"
            ),
        )
    )


def attacked_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The attacks of a record, each with its `fate`: what became of the mark, or of the model."""
    clean = record["twin"]["row"]["accuracy"]
    return [row | {"fate": fate(row, clean)} for row in record["attacks"]]


def fate(row: Mapping[str, Any], clean_accuracy: float | None) -> str:
    """`survived`, `removed` or `model ruined`, else the verdict. A ruined model is worth nothing to a thief, whatever is left of the mark."""
    if is_ruined(row.get("accuracy"), clean_accuracy):
        return RUINED
    return FATES.get(row["verdict"], row["verdict"])


def environment() -> Environment:
    """Templates in which every value is escaped and a missing one is an error."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "minus": minus, "words": lambda name: name.replace("_", " ")}
    return made


def write_report(record: Mapping[str, Any], path: str | Path) -> Path:
    write_bytes_atomic(path, render_report(record).encode())
    return Path(path)


def percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.1f} %"


def minus(value: float, digits: int = 1) -> str:
    """A number with a real minus sign, which does not break at the end of a line."""
    return f"{value:z.{digits}f}".replace("-", "−")


def summary_cards(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures at the top of the page: `title`, `value`, `note` and `state` (`good`, `bad` or `plain`)."""
    marked, twin = record["marked"], record["twin"]
    fates = Counter(row["fate"] for row in attacked_rows(record))
    passed = sum(forgery["passed"] for forgery in record["forgeries"])
    found, clean = marked["row"]["verdict"] == Verdict.FOUND, twin["row"]["verdict"] == Verdict.NOT_FOUND
    difference = 100 * (marked["row"]["accuracy"] - twin["row"]["accuracy"])
    return [
        {
            "title": "Marked model",
            "value": marked["row"]["verdict"].capitalize(),
            "note": f"log2 p = {minus(marked['row']['log2_p'], 0)}",
            "state": "good" if found else "bad",
        },
        {
            "title": "Unmarked twin",
            "value": twin["row"]["verdict"].capitalize(),
            "note": f"log2 p = {minus(twin['row']['log2_p'])}, same key",
            "state": "good" if clean else "bad",
        },
        {
            "title": "Accuracy",
            "value": percent(marked["row"]["accuracy"]),
            "note": f"{difference:+.1f} points against the twin".replace("-", "−"),
            "state": "plain",
        },
        {
            "title": "Removal attacks",
            "value": f"{fates[SURVIVED]} of {fates.total() - fates[RUINED]} survived",
            "note": f"{fates[RUINED]} more ruined the model",
            "state": "plain",
        },
        {
            "title": "Forgeries",
            "value": f"{len(record['forgeries']) - passed} of {len(record['forgeries'])} failed",
            "note": "false claims that were not accepted",
            "state": "good" if passed == 0 else "bad",
        },
    ]
