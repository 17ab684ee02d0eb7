"""`report.html` of a watch: what alarmed, what was looked at, what it cost, and what is guaranteed. Self-contained, no script."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from ..evaluation.glossary import explained
from ..evaluation.report import environment
from ..evidence import Verdict
from ..package import VERSION
from ..serialization import write_bytes_atomic
from .alarms import WHAT_A_CLAIM_NEEDS
from .budget import SpentForEver
from .keys import key_name
from .settings import WatchSettings
from .table import LOOK, UNREACHED, Table


# Points that are drawn, and lines of a table that are shown: the strongest, or the last ones.
MOST_POINTS, MOST_LINES = 3000, 50


def write_watch_report(settings: WatchSettings) -> Path:
    """Writes `report.html` into the output folder, anew after every run."""
    path = settings.folder / "report.html"
    write_bytes_atomic(path, render_watch(settings).encode())
    return path


def render_watch(settings: WatchSettings) -> str:
    """The page as text. All words are escaped: names of repositories and reasons are a stranger's."""
    from ..evaluation.plots import drawn
    from .drawing import cost_plot, looks_plot

    table = Table(settings.folder)
    looks, repositories = looks_of(table), repositories_of(table)
    alarms = [shown(row, settings) for row in looks if row["alarm"] or row["discovery"]]
    count, _ = table.counted()
    points = sorted(looks, key=lambda row: row["log2_p"])[:MOST_POINTS]
    costs = costs_of(repositories)
    return (
        environment()
        .get_template("watch.html.jinja")
        .render(
            settings=settings,
            keys=[key_name(folder, settings.keys) for folder in settings.keys],
            cards=cards_of(settings, repositories, count, alarms),
            alarms=alarms[-MOST_LINES:][::-1],
            more=max(0, len(alarms) - MOST_LINES),
            costs=costs,
            unreached=unreached_of(repositories)[:MOST_LINES],
            looks=drawn(lambda width: looks_plot(points, count, settings.budget, width)) if points else None,
            cost=drawn(lambda width: cost_plot(repositories, width)) if repositories else None,
            count=count,
            spent=spent_by(settings.budget, count),
            next_alpha=math.log2(settings.budget * SpentForEver().gamma(count + 1)),
            needs=WHAT_A_CLAIM_NEEDS.replace("`", ""),
            glossary=explained("log2 p", "look", "basis", "reference", "sub-key"),
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=VERSION,
        )
    )


def looks_of(table: Table) -> list[dict[str, Any]]:
    rows = table.looks(["batch", "place", "repo", "revision", "key", "look", "log2_p", "log2_e", "verdict", "reason", "matches", "trials",
                        "aligned", "alarm", "discovery", "outcome"])  # fmt: skip
    return rows.filter(pc.equal(rows["outcome"], LOOK)).to_pylist()


def repositories_of(table: Table) -> list[dict[str, Any]]:
    """One row per repository and batch: several keys looked at what was read once."""
    rows = table.looks(
        ["batch", "place", "repo", "outcome", "reason", "requests", "bytes", "size", "seconds", "aligned"]
    )
    found = {(row["batch"], row["place"]): row for row in rows.to_pylist()}
    return list(found.values())


def costs_of(repositories: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Requests, bytes and seconds by how repositories ended."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in repositories:
        name = f"{row['outcome']}, aligned" if row["aligned"] else row["outcome"]
        groups.setdefault(name, []).append(row)
    return [
        {
            "outcome": name,
            "count": len(rows),
            "requests": sum(row["requests"] for row in rows) / len(rows),
            "most_requests": max(row["requests"] for row in rows),
            "bytes": sum(row["bytes"] for row in rows) / len(rows),
            "share": sum(row["bytes"] for row in rows) / max(1, sum(row["size"] for row in rows)),
            "seconds": sum(row["seconds"] for row in rows) / len(rows),
        }
        for name, rows in sorted(groups.items())
    ]


def unreached_of(repositories: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    last = {row["repo"]: row for row in repositories}
    return [row for row in last.values() if row["outcome"] == UNREACHED]


def spent_by(budget: float, looks: int) -> float:
    """What the looks so far may have spent of the budget: an upper bound of their expected false alarms."""
    gamma = SpentForEver().gamma
    exact = min(looks, 100_000)
    tail = 1 / math.log(exact + 1) - 1 / math.log(looks + 1) if looks > exact else 0.0
    return budget * (sum(map(gamma, range(1, exact + 1))) + tail / 2)


def shown(row: Mapping[str, Any], settings: WatchSettings) -> dict[str, Any]:
    kinds = [name for name, said in (("alarm", row["alarm"]), ("discovery", row["discovery"])) if said]
    # What was read would do for a claim, if it were one; or only for monitoring, whose reading ends early.
    strength = "as strong as a claim asks for" if row["verdict"] == Verdict.FOUND else "strong for monitoring"
    return dict(row) | {"key": key_name(row["key"], settings.keys), "kinds": " and ".join(kinds), "strength": strength}


def cards_of(
    settings: WatchSettings, repositories: Sequence[Mapping[str, Any]], looks: int, alarms: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """The figures at the top of the page."""
    marked = len({row["repo"] for row in alarms})
    said = f"{settings.budget:g} in all looks ever"
    return [
        {
            "title": "Repositories with a mark",
            "value": str(marked),
            "note": f"{sum(bool(row['alarm']) for row in alarms)} alarms, self-checks",
            "state": "bad" if marked else "good",
        },
        {
            "title": "Repositories seen",
            "value": f"{len({row['repo'] for row in repositories}):,}",
            "note": f"{sum(row['requests'] for row in repositories):,} requests, {size_of(sum(row['bytes'] for row in repositories))}",
            "state": "plain",
        },
        {
            "title": "Looks, counted for ever",
            "value": f"{looks:,}",
            "note": f"{len(settings.keys)} keys",
            "state": "plain",
        },
        {
            "title": "False alarms, at most",
            "value": f"{spent_by(settings.budget, looks):.2g}",
            "note": said,
            "state": "plain",
        },
    ]


def size_of(count: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
