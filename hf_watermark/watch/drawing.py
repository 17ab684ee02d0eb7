"""Plots of a watch as inline SVG, in the manner of the other reports."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.drawing import Figure, NullFormatter, matplotlib
from ..evaluation.plots import FAINT, INK, SETTINGS, STYLES, WIDTH, inline_svg
from .budget import SpentForEver
from .table import DISCARDED, LOOK, OUTCOMES


def looks_plot(looks: Sequence[Mapping[str, Any]], count: int, budget: float, width: float = WIDTH) -> str:
    """
    Bits of evidence of each look against its number, and what a look of that number needs to alarm.

    Args:
        looks:
            Rows of the table.
        count (`int`):
            Looks so far.
        width (`float`, *optional*):
            In inches.
    """
    gamma = SpentForEver().gamma
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, 3.1 if width == WIDTH else 3.0), layout="constrained")
        axes = figure.subplots()
        last = max(10, count)
        numbers = [max(1, round(last ** (place / 120))) for place in range(121)]
        axes.plot(
            numbers,
            [-math.log2(budget * gamma(number)) for number in numbers],
            color=INK,
            linewidth=1.2,
            label="needed to alarm",
        )
        for (name, chosen), (colour, marker) in zip(
            (("alarm or discovery", True), ("clear", False)), (STYLES[1], STYLES[0]), strict=True
        ):
            own = [row for row in looks if bool(row["alarm"] or row["discovery"]) is chosen]
            bits = [-row["log2_p"] for row in own]
            axes.scatter(
                [row["look"] for row in own],
                bits,
                s=34 if chosen else 9,
                color=colour,
                marker=marker,
                label=name,
                zorder=3,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(in_figures)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(0.9, 1.3 * last)
        axes.set_ylim(bottom=-4)
        axes.set_xlabel("number of the look")
        axes.set_ylabel("bits: −log2 p")
        axes.grid(color="#e4e7eb", zorder=0)
        figure.legend(loc="outside upper left", ncols=3 if width == WIDTH else 2, frameon=False)
        return inline_svg(figure, f"looks{width:.0f}")


def cost_plot(repositories: Sequence[Mapping[str, Any]], width: float = WIDTH) -> str:
    """Repositories by their number of requests, and bytes read by how they ended."""
    with matplotlib.rc_context(SETTINGS):
        wide = width == WIDTH
        figure = Figure(figsize=(width, 2.6 if wide else 4.8), layout="constrained")
        counts, volume = figure.subplots(1, 2) if wide else figure.subplots(2, 1)
        most = max((row["requests"] for row in repositories), default=0)
        bins = range(min(most, 40) + 2)
        for name, (colour, _) in zip((DISCARDED, LOOK), STYLES, strict=False):
            own = [min(row["requests"], 40) for row in repositories if row["outcome"] == name]
            if own:
                counts.hist(own, bins=bins, color=colour, label=name, alpha=0.85, align="left")
        counts.set_yscale("symlog", linthresh=1)
        counts.yaxis.set_major_formatter(in_figures)
        counts.set_ylim(bottom=0)
        counts.set_xlabel("requests of a repository")
        counts.set_ylabel("repositories")
        if counts.get_legend_handles_labels()[0]:
            counts.legend(frameon=False)
        present = [name for name in OUTCOMES if any(row["outcome"] == name for row in repositories)]
        sizes = [sum(row["bytes"] for row in repositories if row["outcome"] == name) / 1e6 for name in present]
        volume.barh(range(len(present)), sizes, color=FAINT, height=0.6)
        volume.set_yticks(range(len(present)), present)
        volume.invert_yaxis()
        volume.set_xlabel("MB read")
        return inline_svg(figure, f"cost{width:.0f}")


def in_figures(value: float, _: float) -> str:
    """A tick of a logarithmic axis: matplotlib would write a formula."""
    return f"{value:,.0f}"
