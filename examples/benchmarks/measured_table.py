"""
Collects what the benchmarks measured into the table that `hf-watermark plan` reads: fidelity, and match rates after attacks.

    python examples/benchmarks/measured_table.py                      # results/*.json -> hf_watermark/evaluation/measured.json
    python examples/benchmarks/measured_table.py runs/m/results.parquet  # also the tables of `hf-watermark benchmark`

No figure is typed: each entry names its file and the file's SHA-256.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_watermark.evaluation import read_table
from hf_watermark.evaluation.measured import MEASURED, SCHEMA, parse_measured


HERE = Path(__file__).parent
Entry = dict[str, Any]


def entry(kind: str, methods: list[str], data: str, backbone: str, seed: int, value: float, attack: str = "") -> Entry:
    place = {"methods": methods, "data": data, "backbone": backbone, "seed": seed}
    return {"kind": kind, **place, "attack": attack, "value": round(value, 6)}


def from_digits(name: str, record: Any) -> Iterator[Entry]:
    both = ["greedy_residuals", "function_coupled"]
    for row in record["seeds"]:
        yield entry("fidelity", both, "digits", "small_resnet", row["seed"], row["fidelity"])


def from_cifar10(name: str, record: Any) -> Iterator[Entry]:
    if "interrupted" in name or "marked" not in record and "rows" not in record:
        return
    seed, net = int(record["options"]["seed"]), ("cifar10", "small_resnet")
    if "fidelity" in record and "twin" in record:
        methods = list(record["marked"]["methods"])
        yield entry("fidelity", methods, *net, seed, record["fidelity"])
    for row in record["rows"]:
        for method, part in row["methods"].items():
            if part["trials"]:
                yield entry("rate", [method], *net, seed, part["matches"] / part["trials"], row["attack"])


def from_certified(name: str, record: Any) -> Iterator[Entry]:
    task, seed, sigma = record["options"]["task"], record["options"]["seed"], record["config"]["sigma"]
    if sigma != 0.25:  # the default
        return
    yield entry("fidelity", ["certified"], task, "small_resnet", seed, record["fidelity"])
    for attack, row in record.get("attacks", {}).items():
        rate = row["plain_matches"] / row["triggers"]
        yield entry("rate", ["certified"], task, "small_resnet", seed, rate, attack)


def from_soft_label(name: str, record: Any) -> Iterator[Entry]:
    for seed, rows in record["seeds"].items():
        fidelity = rows.get("fidelity", {})
        if {"marked", "twin"} <= fidelity.keys():
            value = fidelity["marked"]["accuracy"] - fidelity["twin"]["accuracy"]
            yield entry("fidelity", ["usp"], record["task"], "small_resnet", int(seed), value)
        for attack, row in rows.get("survival", {}).items():
            # The teacher of the disjoint half is no attack.
            if row.get("trials") and not attack.startswith("marked model"):
                rate = row["matches"] / row["trials"]
                yield entry("rate", ["usp"], record["task"], "small_resnet", int(seed), rate, attack)


def from_watermas(name: str, record: Any) -> Iterator[Entry]:
    for backbone, rows in record["models"].items():
        fidelity, data = rows.get("fidelity", {}), "camvid" if rows["metric"] == "mIoU" else "cifar10"
        for label, row in fidelity.items():
            kind, _, seed = label.partition(", seed ")
            if kind == "default" and f"twin, seed {seed}" in fidelity:
                value = row[rows["metric"]] - fidelity[f"twin, seed {seed}"][rows["metric"]]
                yield entry("fidelity", ["watermas"], data, backbone, int(seed), value)
        for label, row in rows.get("attacks", {}).items():
            place, _, attack = label.partition(" | ")
            kind, _, seed = place.partition(", seed ")
            if kind == "default" and attack != "none":
                yield entry("rate", ["watermas"], data, backbone, int(seed), 1 - row["ber"], attack)


def from_matrix(path: Path) -> Iterator[Entry]:
    seen = set()
    for row in read_table(path):
        place = (row["data"], row["backbone"], row["seed"])
        if row["model_cell"] not in seen:
            seen.add(row["model_cell"])
            yield entry("fidelity", row["methods"], *place, -row["embedding_loss"])
        for part in row["parts"]:
            if part["trials"] and row["attack"] not in ("none", "unmarked_twin"):
                yield entry("rate", [part["method"]], *place, part["matches"] / part["trials"], row["attack"])


READERS = {
    "digits.json": from_digits,
    "cifar10_*.json": from_cifar10,
    "certified_*_seed?.json": from_certified,
    "soft_label_*.json": from_soft_label,
    "watermas.json": from_watermas,
}


def known(item: Entry, entries: list[Entry]) -> bool:
    """Whether this seed's fidelity was measured in an earlier file: a run for further attacks trains the same models again."""
    place = ("kind", "methods", "data", "backbone", "seed")
    return item["kind"] == "fidelity" and any(all(item[name] == old[name] for name in place) for old in entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("tables", nargs="*", type=Path, help="results.parquet of benchmarks")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--output", type=Path, default=HERE.parents[1] / "hf_watermark" / MEASURED)
    options = parser.parse_args()
    entries, sources = [], []
    for pattern, read in READERS.items():
        for path in sorted(options.results.glob(pattern)):
            found = list(read(path.name, json.loads(path.read_text())))
            sources.append({"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
            entries += [item | {"source": path.name} for item in found if not known(item, entries)]
    for path in options.tables:
        sources.append({"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
        entries += [item | {"source": path.name} for item in from_matrix(path)]
    document = {"schema": SCHEMA, "sources": sources, "entries": entries}
    parse_measured(document, "measured table")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {options.output.name}: {len(entries)} entries of {len(sources)} files")


if __name__ == "__main__":
    main()
