"""`report.html` of one check: verdict, plots, every number, and what it does not say. Self-contained, no script."""

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..evidence import COMBINED, LEVEL_B, LEVEL_N, Evidence, Verdict, in_figures, once_in
from ..package import VERSION
from ..serialization import write_bytes_atomic
from .glossary import explained
from .plots import Plot, bits_plot, decoy_plot, drawn, methods_of, path_plot
from .report import environment, minus


STATES = {Verdict.FOUND: "good", Verdict.INVALID: "bad"}
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def render_verdict(
    evidence: Evidence | Mapping[str, Any],
    suspect: str,
    levels: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> str:
    """
    The page as text. All words are escaped; nothing outside the page is referenced.

    Args:
        evidence ([`Evidence`] or `Mapping`):
            The result, or what its `to_dict` gives.
        suspect (`str`):
            What was checked.
        levels (`Mapping`, *optional*):
            What [`~claims.LevelReport.to_dict`] gives, for a published model.
    """
    record = evidence.to_dict() if isinstance(evidence, Evidence) else dict(evidence)
    leaves = leaves_of(record)
    paths = [part["details"]["path"] for part in leaves if part["details"].get("path")]
    needed = LEVEL_B if record["bound_to_beacon"] else LEVEL_N
    return (
        environment()
        .get_template("verdict.html.jinja")
        .render(
            title=title or f"Watermark check of {suspect}",
            suspect=suspect,
            record=record,
            cards=verdict_cards(record),
            leaves=leaves,
            levels=levels,
            plots=plots_of(record),
            path=drawn(lambda width: path_plot(paths, needed, width)) if paths else None,
            glossary=explained("beacon", "decoy key", "level", "log2 p", "look", "sub-key"),
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            versions={
                "hf_watermark": VERSION,
                "torch": torch.__version__,
                "transformers": version("transformers"),
                "Python": platform.python_version(),
            },
        )
    )


def leaves_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The sub-keys of a result, where anything was read."""
    return [part for method in methods_of(record) for part in method["parts"]] if record["trials"] else []


def plots_of(record: Mapping[str, Any]) -> dict[str, Plot]:
    """What can be drawn of a result: `bits` of each sub-key, and the `decoys` beside it where some went along."""
    leaves, plots = leaves_of(record), {}
    if leaves:
        plots["bits"] = drawn(lambda width: bits_plot(leaves, width))
    methods = methods_of(record) if record["trials"] else []
    shown = [m for m in methods if any(part["trials"] and part["controls"].get("rates") for part in m["parts"])]
    if shown:
        plots["decoys"] = drawn(lambda width: decoy_plot({"method": COMBINED, "parts": shown}, width))
    return plots


def write_verdict(path: str | Path, *args: Any, **fields: Any) -> Path:
    """[`render_verdict`] into a new file."""
    write_bytes_atomic(path, render_verdict(*args, **fields).encode(), overwrite=False)
    return Path(path)


def verdict_cards(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures at the top of the page: `title`, `value`, `note` and `state` (`good`, `bad` or `plain`)."""
    needed = LEVEL_B if record["bound_to_beacon"] else LEVEL_N
    name = "B (bound to a public beacon)" if record["bound_to_beacon"] else "N (no public beacon)"
    cards = [
        {
            "title": "Verdict",
            "value": record["verdict"].capitalize(),
            "note": "",
            "state": STATES.get(record["verdict"], "plain"),
        }
    ]
    if not record["trials"]:
        return cards
    cards += [
        {
            "title": "log2 p",
            "value": ("≤ " if in_figures(record["log2_p"], record["looks"]).startswith("<") else "")
            + minus(record["log2_p"]),
            "note": f"{by_chance(record['log2_p'])}; level {name} asks for −{-needed:.0f}",
            "state": "good" if record["log2_p"] <= needed else "plain",
        },
        {
            "title": "Matches",
            "value": f"{record['matches']} of {record['trials']}",
            "note": f"{100 * record['matches'] / record['trials']:.1f} %",
            "state": "plain",
        },
    ]
    if record["details"].get("queries") is not None:
        budget = record["details"].get("budget")
        note = f"of {budget} allowed" if budget else "no budget set"
        cards.append({"title": "Queries", "value": str(record["details"]["queries"]), "note": note, "state": "plain"})
    return cards


def by_chance(log2_p: float) -> str:
    """What a p-value means, for people: how often an unrelated key does as well."""
    digits = once_in(log2_p)
    if digits < 2:
        return "any key may do as well"
    return f"an unrelated key does as well once in 10{str(digits).translate(SUPERSCRIPTS)}"
