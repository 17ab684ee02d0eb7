"""
What the rows of `watermas.py` say together: means over seeds, what sharpening adds to the cost of an attack, and one picture per model.

    python examples/benchmarks/watermas_report.py runs/watermas_1.json runs/watermas_2.json --output runs/watermas.json --plot runs

Several files are several runs with one config, each with models or sections of its own. The cost of an attack is the task metric before it
minus the metric after it. What sharpening adds is that cost for one variant minus the same for frozen carriers, paired by seed, with a 95 %
interval (Student's t over seeds).
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from scipy import stats
from watermas import NOISE, PRUNE, QUANTIZE, RATES, save


Row = dict[str, Any]
PANELS = {"noise": NOISE, "prune": PRUNE, "quantise": QUANTIZE, "fine-tune": RATES}
AXES = ("noise / layer's std", "share pruned", "bits per weight", "rate / training rate")
COLOURS = {"default": "#0b6e99", "sharp": "#be185d", "frozen": "#c2410c", "random": "#4d7c0f", "paper": "#7c3aed"}
# Attacks that leave a working model and that a thief does not choose the seed of: what the sentence about sharpening is made of.
JUDGED = ("noise 0.2", "noise 0.3", "prune 0.6", "prune 0.7")


def merged(records: Sequence[Row]) -> Row:
    whole: Row = {"config": records[0]["config"], "models": {}}
    for record in records:
        if record["config"] != whole["config"]:
            raise SystemExit("the files hold rows of different configs")
        for name, sections in record["models"].items():
            model = whole["models"].setdefault(name, {})
            for section, rows in sections.items():
                model[section] = rows if isinstance(rows, str) else model.get(section, {}) | rows
    return whole


def by_variant(rows: Row) -> dict[tuple[str, str], dict[int, Row]]:
    """Rows by (variant, what was done to it), each by seed."""
    found: dict[tuple[str, str], dict[int, Row]] = defaultdict(dict)
    for label, row in rows.items():
        place, _, done = label.partition(" | ")
        variant, _, seed = place.partition(", seed ")
        found[variant, done][int(seed)] = row
    return found


def spread(values: Sequence[float]) -> Row:
    """Mean and half the width of its 95 % interval."""
    row: Row = {"mean": round(mean(values), 4), "seeds": len(values)}
    if len(values) > 1:
        row["half_width_95"] = round(float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)), 4)
    return row


def summary(model: Row) -> Row:
    metric, result = model["metric"], {}
    plain = by_variant(model.get("fidelity", {}))
    twins = plain.pop(("twin", ""), {})
    result["fidelity"] = {
        variant: spread([row[metric] - twins[seed][metric] for seed, row in seeds.items()])
        for (variant, _), seeds in plain.items()
    }
    for section in ("attacks", "capacity", "interception"):
        result[section] = {}
        for (variant, done), seeds in by_variant(model.get(section, {})).items():
            row = {
                name: round(mean(item[name] for item in seeds.values()), 4)
                for name in (metric, "ber")
                if name in next(iter(seeds.values()))
            }
            if "ber" in row:
                row |= {"worst ber": max(item["ber"] for item in seeds.values())}
                row |= {"worst log2_p": max(item["log2_p"] for item in seeds.values())}
            result[section][f"{variant} | {done}" if done else variant] = row
    attacks = by_variant(model.get("attacks", {}))
    for variant in COLOURS:
        if variant != "frozen" and (variant, "none") in attacks and ("frozen", "none") in attacks:
            result[f"{variant} adds to the cost of attacks"] = added(attacks, variant, metric)
    return result


def added(attacks: dict[tuple[str, str], dict[int, Row]], variant: str, metric: str) -> Row:
    def cost(kind: str, attack: str, seed: int) -> float:
        return attacks[kind, "none"][seed][metric] - attacks[kind, attack][seed][metric]

    more: dict[str, dict[int, float]] = {}
    for label in (label for kind, label in attacks if kind == variant and label != "none"):
        # An interrupted run has fewer seeds of its last attacks.
        seeds = attacks[variant, label].keys() & attacks["frozen", label].keys()
        more[label] = {seed: cost(variant, label, seed) - cost("frozen", label, seed) for seed in sorted(seeds)}
    whole = set.intersection(*(set(more.get(label, ())) for label in JUDGED))
    judged = [mean(more[label][seed] for label in JUDGED) for seed in sorted(whole)]
    rows = {"judged": judged} | {label: [*values.values()] for label, values in more.items()}
    return {label: spread(values) for label, values in rows.items() if values}


def plot(name: str, model: Row, folder: Path) -> None:
    """Task metric and bit error rate against the strength of each attack: means over seeds, bands from the lowest to the highest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    attacks, metric = by_variant(model.get("attacks", {})), model["metric"]
    figure, axes = pyplot.subplots(2, 4, figsize=(14, 5.6), sharex="col", sharey="row", layout="constrained")
    for column, (attack, levels) in enumerate(PANELS.items()):
        for variant, colour in COLOURS.items():
            known = [level for level in levels if (variant, f"{attack} {level}") in attacks]
            places = [levels.index(level) for level in known]
            for line, field in enumerate((metric, "ber")):
                values = [[row[field] for row in attacks[variant, f"{attack} {level}"].values()] for level in known]
                if not values:
                    continue
                means = [mean(several) for several in values]
                axes[line, column].plot(places, means, color=colour, marker="o", markersize=4, label=variant)
                lowest, highest = map(min, values), map(max, values)
                axes[line, column].fill_between(places, [*lowest], [*highest], color=colour, alpha=0.15, linewidth=0)
        axes[0, column].set_title(attack)
        axes[1, column].set_xticks(range(len(levels)), [str(level) for level in levels])
        twins = attacks.get(("twin", ""), {})
        if twins:
            unmarked = mean(row[metric] for row in twins.values())
            axes[0, column].axhline(unmarked, color="#9aa5b1", linestyle="--", label="unmarked")
        axes[1, column].axhline(0.3, color="#9aa5b1", linestyle=":", label="512 bits still reach level B")
        axes[1, column].set_xlabel(AXES[column])
    axes[0, 0].set_ylabel(metric)
    axes[1, 0].set_ylabel("bit error rate")
    axes[1, 0].set_ylim(-0.02, 0.62)
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[1, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(name)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"watermas_{name}.png", dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, help="one JSON of all rows and the summary")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw one picture per model")
    options = parser.parse_args()
    whole = merged([json.loads(path.read_text()) for path in options.records])
    whole["summary"] = {name: summary(model) for name, model in whole["models"].items()}
    for name, model in whole["models"].items():
        rows = whole["summary"][name]
        for variant, row in rows["fidelity"].items():
            print(f"{name}: fidelity of {variant}: {json.dumps(row)}")
        for label in (label for label in rows if label.endswith("of attacks")):
            print(f"{name}: {label} {json.dumps(rows[label].get('judged'))}")
        if options.plot:
            plot(name, model, options.plot)
    if options.output:
        save(options.output, whole)


if __name__ == "__main__":
    main()
