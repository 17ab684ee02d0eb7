"""Plots of a report as inline SVG: no file, no script, no address of anything outside."""

import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ..evidence import COMBINED, LEVEL_B, LEVEL_N
from .drawing import Figure, FigureCanvasSVG, matplotlib


# Of a figure on a page and on a phone, in inches.
WIDTH, NARROW = 8.6, 4.0
INK, FAINT = "#1f2933", "#9aa5b1"
# Told apart by shape as well as colour.
STYLES = (("#0b6e99", "o"), ("#c2410c", "D"), ("#4d7c0f", "s"), ("#7c3aed", "^"), ("#be185d", "v"), ("#475569", "P"))
SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud and searched
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "Segoe UI", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a label is never a formula
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class Plot(NamedTuple):
    """A figure as SVG, drawn twice: what is legible on a page is too small on a phone. The style sheet shows one of them."""

    wide: Markup
    narrow: Markup


def drawn(draw: Callable[[float], str]) -> Plot:
    """`draw` at both widths. Markup, because matplotlib escapes the labels."""
    return Plot(Markup(draw(WIDTH)), Markup(draw(NARROW)))


def survival_plot(
    rows: Sequence[Mapping[str, Any]], methods: Sequence[str], ruined: Collection[int] = (), width: float = WIDTH
) -> str:
    """
    Accuracy against survival of the mark, one line per model: bits of evidence (-log2 p) of each method with both decision levels
    on the left, accuracy on the right.

    Args:
        rows:
            Rows as [`survival_row`] makes them.
        methods:
            Names of the methods, in the order in which they get their colours.
        ruined (`Collection[int]`, *optional*):
            Places of rows whose accuracy is lost; they are drawn hollow and grey.
        width (`float`, *optional*):
            In inches.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, 1.15 + _line_height(width) * len(rows)), layout="constrained")
        bits, accuracy = figure.subplots(1, 2, sharey=True, width_ratios=(2.4, 1))
        _draw_levels(bits, width)
        for method, (colour, marker) in zip(methods, STYLES, strict=False):
            read = {
                place: -row["methods"][method]["log2_p"] for place, row in enumerate(rows) if method in row["methods"]
            }
            kept = [place for place in read if place not in ruined]
            points: dict[str, Any] = {"marker": marker, "s": 42, "zorder": 3}
            bits.scatter([read[place] for place in kept], kept, color=colour, label=_words(method), **points)
            lost = [place for place in read if place in ruined]
            bits.scatter([read[place] for place in lost], lost, facecolor="white", edgecolor=FAINT, **points)
        _bits_axis(bits, [str(row["attack"]) for row in rows], width)
        bits.grid(axis="y", color="#e4e7eb", zorder=0)
        for place, row in enumerate(rows):
            if (value := row.get("accuracy")) is not None:
                accuracy.barh([place], [100 * value], color="#e4e7eb" if place in ruined else "#cbd2d9", height=0.6)
                accuracy.text(98, place, f"{100 * value:.1f}", ha="right", va="center")
        accuracy.set_xlim(0, 100)
        accuracy.set_xlabel("accuracy (%)")
        accuracy.tick_params(axis="y", left=False)
        figure.legend(loc="outside upper left", ncols=len(methods), frameon=False)
        return inline_svg(figure, f"survival{width:.0f}")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _line_height(width: float) -> float:
    """Inches per line; on a phone its name stands above it."""
    return 0.36 if width == WIDTH else 0.5


def _bits_axis(axes: Any, names: Sequence[str], width: float) -> None:
    """The axis of -log2 p, which everything in this package shares, with one named line for each of `names`."""
    axes.set_xlim(-8, 268)
    axes.set_xticks([0, 64, 128, 192, 256])
    axes.set_ylim(len(names) - 0.5, -0.5)
    if width == WIDTH:
        axes.set_xlabel("bits of evidence: −log2 p (never quoted above 256)")
        axes.set_yticks(range(len(names)), names)
        return
    axes.set_xlabel("bits: −log2 p (at most 256)")
    axes.set_yticks(range(len(names)), [""] * len(names))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.6, -0.8)
    over: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # the dashes of the levels
    for place, name in enumerate(names):
        axes.annotate(name, (0, place), (0, 6), textcoords="offset points", va="bottom", zorder=2.5, bbox=over)


def _draw_levels(axes: Any, width: float) -> None:
    for limit, name in ((LEVEL_B, "B"), (LEVEL_N, "N")):
        axes.axvline(-limit, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        axes.annotate(
            f"level {name}: {-limit:.0f}" if width == WIDTH else f"{name}: {-limit:.0f}",
            (-limit, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )


def decoy_plot(evidence: Mapping[str, Any], width: float = WIDTH) -> str:
    """
    Histogram of the statistic (share of matches) over decoy keys, one panel per method, the true sub-keys marked.

    Args:
        evidence:
            What [`Evidence.to_dict`] gives for one suspect.
        width (`float`, *optional*):
            In inches; panels of a narrow figure lie below each other.
    """
    methods = methods_of(evidence)
    rows = len(methods) if width < WIDTH else 1
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, 2.9 * rows), layout="constrained")
        panels = figure.subplots(rows, len(methods) // rows, squeeze=False).flatten()
        for axes, method, (colour, _) in zip(panels, methods, STYLES, strict=False):
            # Of a remote file, what cannot count is not read.
            parts = [part for part in method["parts"] if part["trials"]]
            decoys = [rate for part in parts for rate in part["controls"].get("rates", [])]
            true = [part["matches"] / part["trials"] for part in parts]
            axes.hist(decoys, bins=[place / 50 for place in range(51)], color=FAINT, label=f"{len(decoys)} decoy keys")
            for place, rate in enumerate(true):
                label = f"true key ({len(true)} sub-keys)" if len(true) > 1 else "true key"
                axes.axvline(rate, color=colour, linewidth=2.5, label=label if place == 0 else None)
            axes.set_xlim(0, 1.03)
            axes.set_title(_words(method["method"]), loc="left", fontsize=10)
            axes.set_xlabel(f"share of matches ({parts[0]['trials']} answers per key)")
            axes.set_ylabel("keys")
            axes.set_ylim(top=1.4 * axes.get_ylim()[1])  # room for the legend above the bars
            axes.legend(frameon=False, loc="upper left", fontsize=8.5)
        return inline_svg(figure, f"decoys{width:.0f}")


def bits_plot(leaves: Sequence[Mapping[str, Any]], width: float = WIDTH) -> str:
    """
    Bits of evidence (-log2 p) of each sub-key, with both decision levels.

    Args:
        leaves:
            Evidence of single sub-keys, as [`Evidence.to_dict`] gives it.
        width (`float`, *optional*):
            In inches.
    """
    methods = list(dict.fromkeys(part["method"] for part in leaves))
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, 0.9 + _line_height(width) * len(leaves)), layout="constrained")
        axes = figure.subplots()
        _draw_levels(axes, width)
        for method, (colour, marker) in zip(methods, STYLES, strict=False):
            places = [place for place, part in enumerate(leaves) if part["method"] == method]
            values = [-leaves[place]["log2_p"] for place in places]
            axes.hlines(places, 0, values, color=colour, linewidth=2)
            axes.scatter(values, places, color=colour, marker=marker, s=42, zorder=3)
        names = [f"sub-key {part['details'].get('subkey', '?')}" for part in leaves]
        if len(methods) > 1:
            names = [f"{_words(part['method'])}, {name}" for part, name in zip(leaves, names, strict=True)]
        _bits_axis(axes, names, width)
        return inline_svg(figure, f"bits{width:.0f}")


def path_plot(paths: Sequence[Sequence[Sequence[float]]], level: float, width: float = WIDTH) -> str:
    """
    log2 of the e-value against the number of queries, one line per sub-key.

    Args:
        paths:
            Per sub-key pairs `[queries, log2 e]`.
        level:
            log2 p that the verdict asks for.
        width (`float`, *optional*):
            In inches.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, 2.9), layout="constrained")
        axes = figure.subplots()
        for path, (colour, marker) in zip(paths, STYLES * len(paths), strict=False):
            queries, values = zip(*path, strict=True)
            axes.plot(queries, values, color=colour, marker=marker, markersize=4)
        axes.axhline(-level, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"enough for a claim: {-level:.0f}", (0, -level), xytext=(4, 3), textcoords="offset points", fontsize=8.5
        )
        axes.set_ylim(top=1.12 * max(-level, *(value for path in paths for _, value in path)))
        axes.set_xlim(left=0)
        axes.set_xlabel("queries")
        axes.set_ylabel("log2 of the e-value")
        return inline_svg(figure, f"path{width:.0f}")


def methods_of(evidence: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The method-level evidence inside the evidence of one suspect."""
    return evidence["parts"] if evidence["method"] == COMBINED else [evidence]


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element for HTML: no prolog, no namespaces (HTML implies them), ids that start with `name`."""
    FigureCanvasSVG(figure)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(\sid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1)
