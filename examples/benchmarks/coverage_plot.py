"""
How many weights may carry a mark against the size of a model, from `results/coverage.json`.

    python examples/benchmarks/coverage_plot.py --output examples/benchmarks/coverage.png
"""

import argparse
import io
from pathlib import Path

from PIL import Image
from table_section import read

from hf_watermark.evaluation.drawing import Figure, FigureCanvasAgg
from hf_watermark.evaluation.plots import INK, SETTINGS, STYLES, matplotlib


WAYS = {"family": "names", "streams": "streams", "thirds": "every third input"}
# Two sub-keys of 512 bits in groups of 64 weights that leave 30 % of the groups unused.
TWO_SUBKEYS = 2 * 512 * 64 / 0.7


def draw() -> Figure:
    figure = Figure(figsize=(4.0, 4.6), layout="constrained")
    panel = figure.subplots()
    record = read("coverage")
    rows = [row for library in ("timm", "transformers") for row in record[library].values() if "weights" in row]
    for (way, label), (color, marker) in zip(WAYS.items(), STYLES, strict=False):
        own = [row for row in rows if row["found_by"] == way]
        panel.scatter(
            [row["parameters"] / 1e6 for row in own],
            [row["weights"] / 1e6 for row in own],
            color=color,
            marker=marker,
            s=14,
            alpha=0.7,
            linewidths=0,
            label=f"by {label} ({len(own)})",
        )
    panel.axhline(TWO_SUBKEYS / 1e6, color=INK, linewidth=0.8, linestyle="--", label="two sub-keys fit above")
    panel.set_xscale("log")
    panel.set_yscale("log")
    for axis in (panel.get_xaxis(), panel.get_yaxis()):
        axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xlabel("parameters (millions)")
    panel.set_ylabel("weights that may carry (millions)")
    panel.grid(alpha=0.25)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9, labelcolor=INK, ncols=2)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/coverage.png"))
    output = parser.parse_args().output
    with matplotlib.rc_context({name: value for name, value in SETTINGS.items() if not name.startswith("svg")}):
        figure = draw()
        file = io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(file, format="png", dpi=200)
    Image.open(file).convert("RGB").quantize(64).save(output, optimize=True)


if __name__ == "__main__":
    main()
