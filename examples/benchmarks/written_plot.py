"""
What a mark without training costs against how many bits it has, from `results/written.json`.

    python examples/benchmarks/written_plot.py --output examples/benchmarks/written.png
"""

import argparse
import io
import re
from collections import defaultdict
from pathlib import Path

from PIL import Image
from table_section import plain, read

from hf_watermark.evaluation.drawing import Figure, FigureCanvasAgg
from hf_watermark.evaluation.matrix.summary import mean
from hf_watermark.evaluation.plots import INK, SETTINGS, STYLES, matplotlib


BITS = 512
MARK = re.compile(r"greedy_residuals, (\d) sub-keys?, (no data|\d+ images)")
Line = dict[int, list[tuple[float, float]]]


def lines() -> dict[tuple[str, bool], Line]:
    """By net and whether images were given: KL and share of answers that changed, by bits."""
    found: dict[tuple[str, bool], Line] = defaultdict(lambda: defaultdict(list))
    for label, row in read("written")["fidelity"].items():
        net, _, mark = label.partition(" | ")[0].partition(", ")
        known = MARK.fullmatch(mark)
        if known:
            cost = row["kl"], 100 * (1 - row["agreement"])
            found[net, known[2] != "no data"][BITS * int(known[1])].append(cost)
    return {name: found[name] for name in sorted(found) if len(found[name]) > 1}


def draw() -> Figure:
    figure = Figure(figsize=(4.0, 5.6), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    found = lines()
    nets = list(dict.fromkeys(net for net, _ in found))
    for (net, images), line in found.items():
        color, marker = STYLES[nets.index(net)]
        for panel, which in zip(panels, (0, 1), strict=True):
            counts = sorted(line)
            panel.plot(
                counts,
                [mean([cost[which] for cost in line[count]]) for count in counts],
                color=color,
                marker=marker,
                linestyle="-" if images else ":",
                label=f"{plain(net)}, {'with images' if images else 'no data'}",
            )
    panels[0].set_yscale("log")
    panels[0].get_yaxis().set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].set_ylabel("KL divergence (nats)")
    panels[1].set_ylabel("answers that change (%)")
    panels[1].set_ylim(bottom=0)
    panels[1].set_xlabel("bits in the weights")
    panels[1].set_xscale("log", base=2)
    panels[1].set_xticks(sorted({count for line in found.values() for count in line}))
    panels[1].get_xaxis().set_major_formatter(matplotlib.ticker.ScalarFormatter())
    for panel in panels:
        panel.grid(alpha=0.25)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=9, labelcolor=INK
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/written.png"))
    output = parser.parse_args().output
    with matplotlib.rc_context({name: value for name, value in SETTINGS.items() if not name.startswith("svg")}):
        figure = draw()
        file = io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(file, format="png", dpi=200)
    Image.open(file).convert("RGB").quantize(64).save(output, optimize=True)


if __name__ == "__main__":
    main()
