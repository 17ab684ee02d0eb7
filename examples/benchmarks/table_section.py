"""One table of the generated pages, and how its numbers are written: one number a cell, seeds and interval in columns."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from hf_watermark.evaluation.matrix.summary import half_width, mean


# How the scripts are told to take CIFAR-10.
CIFAR = "--task cifar10 --data FOLDER"
RESULTS = Path(__file__).parent / "results"
ALIGNED = {"number": "---:", "text": "---"}


@dataclass(frozen=True)
class Section:
    """
    Args:
        title (`str`):
            Its heading on the page of all tables.
        about (`str`):
            What was measured, and how a row is read.
        command (`str`):
            What makes the results file again.
        columns (`Sequence[str]`):
            Headings; one that starts with `=` stands over numbers.
        rows (`Sequence[Sequence[str]]`):
            Cells as they are shown.
    """

    title: str
    about: str
    command: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def table(self) -> str:
        return table(self.columns, self.rows)

    def block(self) -> str:
        """The table with its words and its command, without the heading."""
        about = fill(self.about, 150, break_long_words=False, break_on_hyphens=False)
        return f"{about}\n\n{self.table()}\n\n```console\n{self.command}\n```"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns as of [`Section`]."""
    lines = [" | ".join(column.removeprefix("=") for column in columns)]
    lines.append(" | ".join(ALIGNED["number" if column.startswith("=") else "text"] for column in columns))
    lines += [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def read(name: str) -> Any:
    """A results file, by its name without `.json`."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def points(difference: float | None) -> str:
    """Percentage points with their sign; never a minus before zero."""
    return "" if difference is None else signed(round(100 * difference, 2))


def signed(value: float) -> str:
    return f"{value + 0.0:+.2f}".replace("-", "−") if value else "0.00"


def bits(log2_p: float | None) -> str:
    """Evidence in bits: n says that an unrelated key matches so well with a probability of 2^-n at most. 256 and more are shown as 256."""
    return "" if log2_p is None else str(min(256, round(-log2_p) or 0))


def spread(values: Sequence[float]) -> tuple[str, str, str]:
    """Mean in points, half the width of its 95 % interval (Student's t; empty for one seed), and the number of seeds."""
    half = half_width(values)
    return points(mean(values)), "" if half is None else f"{100 * half:.2f}", str(len(values))


def measured_spread(row: dict[str, Any]) -> tuple[str, str, str]:
    """The same of a mean that a results file holds already."""
    half = row.get("half_width_95", row.get("half_width"))
    return points(row["mean"]), "" if half is None else f"{100 * half:.2f}", str(row["seeds"])


def plain(name: str) -> str:
    """A name of a method or an attack as words."""
    return name.replace("_", " ")
