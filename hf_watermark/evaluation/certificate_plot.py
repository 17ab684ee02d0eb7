"""A certificate as a picture: what it guarantees at which radius, and how far real attacks moved the same weights."""

import io
import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from ..methods.certified import Certificate, CertifiedRadius
from ..serialization import write_bytes_atomic
from .drawing import Figure, FigureCanvasAgg, Line2D, NullFormatter, matplotlib
from .plots import FAINT, INK, SETTINGS, STYLES


# The reader's browser finds the fonts of an inline SVG; a PNG is drawn here, with the font that comes with matplotlib.
PNG_SETTINGS: Any = SETTINGS | {"font.sans-serif": ["DejaVu Sans"], "savefig.dpi": 160}
BAND, GRID, DASHES = "#d7ecf3", "#e4e7eb", (0, (4, 3))
INSIDE, OUTSIDE = STYLES[0][0], STYLES[1][0]
# The logarithmic axis reaches this factor beyond the smallest and the largest distance: together more than a decade, so that
# at least one power of ten, the only labelled places, is on it.
MARGIN = 3.3


def certificate_plot(certificate: Certificate) -> Figure:
    """
    Certified trigger accuracy against radius, one step curve per sub-key; beside it, where the certificate has attack distances,
    those distances on a logarithmic axis with the certified radius as a band. Both axes are in units of sigma.

    Args:
        certificate ([`~methods.certified.Certificate`]):
            What [`~methods.certified.certify`] returns.

    Returns:
        `Figure`: with an Agg canvas, shown nowhere; [`write_certificate_plot`] saves it.
    """
    attacks = certificate.attack_distances
    with matplotlib.rc_context(PNG_SETTINGS):
        figure = Figure(
            figsize=(9.6, max(3.9, 1.7 + 0.3 * len(attacks))) if attacks else (5.4, 3.9), layout="constrained"
        )
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2 if attacks else 1, squeeze=False)[0]
        _draw_curves(panels[0], certificate)
        if attacks:
            _draw_attacks(panels[1], certificate)
        figure.supxlabel(_small_print(certificate), x=0.01, ha="left", fontsize=7.5, linespacing=1.5)
    return figure


def write_certificate_plot(certificate: Certificate, path: str | Path, overwrite: bool = False) -> Path:
    """
    Writes [`certificate_plot`] as a PNG.

    Raises:
        `FileExistsError`: when the file is there already and `overwrite` is not set.
    """
    figure = certificate_plot(certificate)
    file = io.BytesIO()
    with matplotlib.rc_context(PNG_SETTINGS):  # fonts are looked up again when the figure is drawn
        figure.savefig(file, format="png")
    write_bytes_atomic(path, file.getvalue(), overwrite=overwrite)
    return Path(path)


# Left: what is guaranteed


def _draw_curves(axes: Any, certificate: Certificate) -> None:
    curves = sorted(certificate.curves.items())
    legend: list[Line2D] = []
    for (index, curve), (colour, marker) in zip(curves, cycle(STYLES), strict=False):
        held, missed = [row for row in curve if row.certified], [row for row in curve if not row.certified]
        _draw_steps(axes, curve, FAINT)
        _draw_steps(axes, held, colour)
        points: dict[str, Any] = {
            "marker": marker,
            "markersize": 5.5,
            "linestyle": "none",
            "zorder": 4,
            "clip_on": False,
        }
        if held:  # an empty line without clipping would pull the layout to the corner of the figure
            axes.plot(*_points(held), color=colour, **points)
        if missed:
            axes.plot(*_points(missed), color=FAINT, markerfacecolor="white", **points)
        label = "certified" if len(curves) == 1 else f"sub-key {index}"
        legend.append(Line2D([], [], color=colour, marker=marker, markersize=5.5, label=label))
    if any(not row.certified for _, curve in curves for row in curve):
        hollow: dict[str, Any] = {"marker": "o", "markersize": 5.5, "markerfacecolor": "white"}
        legend.append(Line2D([], [], color=FAINT, label="not certified", **hollow))
    if certificate.level_b_matches is not None:
        share = 100 * certificate.level_b_matches / certificate.triggers
        line = axes.axhline(share, color=INK, linewidth=1, linestyle=DASHES, zorder=2)
        line.set_label(f"level B: {certificate.level_b_matches} of {certificate.triggers}")
        legend.append(line)
    axes.set_xlim(0, 1.04 * max(row.radius for _, curve in curves for row in curve))
    axes.set_ylim(0, 104)
    axes.set_xlabel("radius (units of σ)")
    axes.set_ylabel("certified trigger accuracy (%)")
    axes.grid(axis="y", color=GRID, zorder=0)
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1), "ncols": 3, "borderpad": 0}
    axes.legend(handles=legend, frameon=False, fontsize=8, handlelength=1.6, columnspacing=1.2, **place)


def _draw_steps(axes: Any, curve: Sequence[CertifiedRadius], colour: str) -> None:
    """What holds at a radius holds everywhere nearer, so each step reaches back to the radius before."""
    if curve:
        radii, shares = _points(curve)
        axes.step([0, *radii], [shares[0], *shares], where="pre", color=colour, linewidth=1.8, zorder=3)


def _points(curve: Sequence[CertifiedRadius]) -> tuple[list[float], list[float]]:
    return [row.radius for row in curve], [100 * (row.accuracy or 0.0) for row in curve]


# Right: what attacks do


def _draw_attacks(axes: Any, certificate: Certificate) -> None:
    attacks = sorted(certificate.attack_distances.items(), key=lambda item: item[1])
    radius = certificate.radius
    # A logarithmic axis has no place for 0 and infinity: they stand at its ends.
    sizes = [value for value in (radius, *(distance for _, distance in attacks)) if 0 < value < math.inf] or [1.0]
    lowest, highest = min(sizes) / MARGIN, max(sizes) * MARGIN
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(lowest, highest)
    if radius > 0:
        axes.axvspan(lowest, radius, color=BAND, linewidth=0, zorder=1)
        axes.axvline(radius, color=INSIDE, linewidth=1, zorder=2)
    note = f"shaded: certified, up to {radius:g} σ" if radius > 0 else "no radius is certified"
    axes.set_title(note, loc="left", fontsize=8.5, color=INSIDE if radius > 0 else OUTSIDE)
    for place, (_, distance) in enumerate(attacks):
        shown = min(max(distance, lowest), highest)
        colour, marker = (INSIDE, "o") if distance <= radius else (OUTSIDE, "D")
        marker = {0.0: "<", math.inf: ">"}.get(distance, marker)
        axes.plot([shown], [place], color=colour, marker=marker, markersize=6.5, zorder=4, clip_on=False)
    numbers = axes.secondary_yaxis("right")
    numbers.set_yticks(range(len(attacks)), [_number(distance) for _, distance in attacks])
    for side in (axes, numbers):
        side.tick_params(axis="y", length=0, pad=9)
    numbers.spines["right"].set_visible(False)
    axes.set_yticks(range(len(attacks)), [label for label, _ in attacks])
    axes.set_ylim(len(attacks) - 0.4, -0.6)
    axes.set_xlabel("distance of the attacked model (units of σ)")
    axes.grid(axis="y", color=GRID, zorder=0)


def _number(distance: float) -> str:
    if distance == math.inf:
        return "∞"
    return f"{distance:.0f}" if distance >= 100 else f"{distance:.3g}"


def _small_print(certificate: Certificate) -> str:
    return (
        f"σ = {certificate.sigma:g}; distance: {certificate.norm}\n"
        f"what may move: {certificate.moves}; {certificate.triggers} triggers per sub-key, {certificate.draws} draws\n"
        f"confidence {certificate.confidence:g} for all radii and a suspect's verification together"
    )
