"""Plots of a benchmark: stealing loss against retention, survival heat map, cost of attack."""

from collections.abc import Sequence
from typing import Any

from ...evidence import LEVEL_B, LEVEL_N
from ..drawing import Figure, LinearSegmentedColormap, NullFormatter, matplotlib
from ..plots import FAINT, INK, SETTINGS, STYLES, WIDTH
from .cells import NO_ATTACK, ON_TWIN
from .summary import AFFORDABLE_LOSS, Outcome, is_attack, pareto_front


GRID = "#e4e7eb"
SOFT = "#52606d"
DASHES = (0, (4, 3))
# A thief who loses more than this has not stolen much; such points stand at the edge.
MOST_LOSS = 30.0
KEPT, LOST = STYLES[0][0], STYLES[1][0]


def words(label: str) -> str:
    return label.replace("_", " ")


def benchmark_plots(found: Sequence[Outcome], width: float = WIDTH) -> dict[str, Figure]:
    """All plots that the outcomes allow, by kind: `heat`, and with attacks `retention` and `cost`; `width` in inches."""
    methods = list(dict.fromkeys(outcome.method for outcome in found))
    plots = {"heat": survival_heat_map(found, methods, width)}
    if any(is_attack(outcome) and outcome.applies for outcome in found):
        plots |= {"retention": retention_plot(found, methods, width), "cost": cost_plot(found, methods, width)}
    return plots


def retention_plot(found: Sequence[Outcome], methods: Sequence[str], width: float = WIDTH) -> Figure:
    """
    Stealing loss against retention, one panel per method: each point is an attack (mean over seeds), the line is the Pareto front, and the
    thief wants to be in the lower left corner, which is shaded.
    """
    columns = 3 if width == WIDTH else 2
    rows = -(-len(methods) // columns)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, 0.5 + (2.5 if width == WIDTH else 1.9) * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
        for axes, method in zip(panels, methods, strict=False):
            _retention_panel(axes, [o for o in found if o.method == method and is_attack(o)])
            axes.set_title(words(method), loc="left", fontsize=9.5)
        for axes in panels[len(methods) :]:
            axes.set_visible(False)
        figure.supxlabel("stealing loss (points of accuracy)", fontsize=9.5)
        figure.supylabel("retention (0.5: threshold at p = 0.05)", fontsize=9.5)
        return figure


def _retention_panel(axes: Any, attacks: Sequence[Outcome]) -> None:
    points = [
        (min(100 * o.stealing_loss, MOST_LOSS), o.retention, o)
        for o in attacks
        if o.stealing_loss is not None and o.retention is not None
    ]
    axes.axvspan(-10, 100 * AFFORDABLE_LOSS, ymax=0.5 / 1.08, color="#fdeee6", zorder=0)
    axes.axhline(0.5, color=INK, linewidth=0.8, linestyle=DASHES, zorder=1)
    axes.axvline(100 * AFFORDABLE_LOSS, color=INK, linewidth=0.8, linestyle=DASHES, zorder=1)
    front = pareto_front([(loss, kept) for loss, kept, _ in points])
    if front:
        losses, kept = zip(*front, strict=True)
        axes.step(losses, kept, where="post", color=FAINT, linewidth=1.4, zorder=2)
    for removed, colour, marker in ((False, KEPT, "o"), (True, LOST, "D")):
        chosen = [(loss, kept) for loss, kept, o in points if o.removed is removed]
        if chosen:
            axes.scatter(*zip(*chosen, strict=True), color=colour, marker=marker, s=22, zorder=3, alpha=0.85)
    axes.set_xlim(-4, MOST_LOSS + 2)
    axes.set_ylim(0, 1.08)
    axes.grid(color=GRID, zorder=0)


def survival_heat_map(found: Sequence[Outcome], methods: Sequence[str], width: float = WIDTH) -> Figure:
    """
    The weakest evidence over seeds in bits, one row per attack and one column per method. Bold: the mark is not found at an affordable
    loss. A dot: the thief loses five points or more. Grey: the model is ruined, whatever is left of the mark. `n/a`: the attack cannot be run.
    """
    attacks = list(dict.fromkeys(o.attack for o in found if o.attack != ON_TWIN))
    attacks.sort(key=lambda label: label != NO_ATTACK)
    table = {(o.attack, o.method): o for o in found}
    colours = LinearSegmentedColormap.from_list("bits", ["#c2410c", "#f6d8c8", "#f8fafc", "#b9dfec", KEPT])
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, 1.3 + 0.25 * len(attacks)), layout="constrained")
        axes = figure.subplots()
        for row, attack in enumerate(attacks):
            for column, method in enumerate(methods):
                _heat_cell(axes, row, column, table.get((attack, method)), colours)
        axes.set_xlim(0, len(methods))
        axes.set_ylim(len(attacks), 0)
        places = [n + 0.5 for n in range(len(methods))]
        axes.set_xticks(places, [words(m).replace(" ", "\n", 1) if width == WIDTH else words(m) for m in methods])
        axes.xaxis.tick_top()
        axes.set_yticks([n + 0.5 for n in range(len(attacks))], [words(attack) for attack in attacks])
        axes.tick_params(length=0)
        if width < WIDTH:
            axes.tick_params(axis="x", rotation=90)
            axes.tick_params(axis="both", labelsize=8, pad=2)
        for side in axes.spines.values():
            side.set_visible(False)
        return figure


def _heat_cell(axes: Any, row: int, column: int, outcome: Outcome | None, colours: Any) -> None:
    text, weight, colour, dark = "" if outcome is None else "n/a", "normal", GRID, False
    if outcome is not None and outcome.log2_p is not None:
        bits = abs(outcome.log2_p)
        text, weight = f"{bits:.0f}" + ("" if outcome.affordable else " •"), "bold" if outcome.succeeds else "normal"
        if outcome.ruined:
            colour = "#f1f3f5"
        else:
            colour, dark = colours(_heat(bits)), bits > 190 or bits < 10
    axes.fill([column, column + 1, column + 1, column], [row, row, row + 1, row + 1], color=colour, edgecolor="white")
    middle = {"ha": "center", "va": "center", "fontsize": 8, "weight": weight, "color": "white" if dark else INK}
    if outcome is not None and (outcome.ruined or not outcome.applies):
        middle["color"] = SOFT
    axes.text(column + 0.5, row + 0.52, text, **middle)


def _heat(bits: float) -> float:
    """0 to 1, with the level that a claim needs in the middle."""
    middle = -LEVEL_B
    return 0.5 * bits / middle if bits < middle else min(1.0, 0.5 + 0.5 * (bits - middle) / (-LEVEL_N * 1.6 - middle))


def cost_plot(found: Sequence[Outcome], methods: Sequence[str], width: float = WIDTH) -> Figure:
    """What each attack costs the thief: seconds of one core (mean over methods), and whether it removes anything at an affordable loss."""
    attacks = {o.attack for o in found if is_attack(o) and o.applies}
    costs = []
    for attack in attacks:
        own = [o for o in found if o.attack == attack and o.applies]
        removed = [o.method for o in own if o.succeeds]
        costs.append((sum(o.cpu_seconds for o in own) / len(own), attack, removed))
    costs.sort()
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, 1.1 + 0.24 * len(costs)), layout="constrained")
        axes = figure.subplots()
        for place, (seconds, _, removed) in enumerate(costs):
            colour, marker = (LOST, "D") if removed else (KEPT, "o")
            axes.plot([max(seconds, 0.01)], [place], color=colour, marker=marker, markersize=6, linestyle="none")
            note = f"removes {len(removed)} of {len(methods)}" if removed else ""
            axes.annotate(note, (max(seconds, 0.01), place), xytext=(8, -3), textcoords="offset points", fontsize=8)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(costs)), [words(attack) for _, attack, _ in costs])
        axes.set_ylim(-0.7, len(costs) - 0.3)
        axes.margins(x=0.12)
        axes.set_xlabel("seconds of one core, attack and check (mean over methods and seeds)")
        if width < WIDTH:
            axes.set_xlabel("seconds of one core, attack and check")
            axes.tick_params(axis="y", labelsize=8, pad=2)
            axes.margins(x=0.3)
        axes.grid(axis="x", color=GRID)
        return figure
