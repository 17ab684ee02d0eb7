"""Table of the models that have places for a mark in their weights."""

from collections import Counter
from typing import Any

from table_section import Section, read


COMMAND = "python examples/benchmarks/coverage.py --smallest --output runs/coverage.json"
COLUMNS = "library, =models, =built, =found by names, =found by streams, =found by thirds, =not found, =one sub-key only, =two or more sub-keys"


def coverage() -> Section:
    record = read("coverage")
    rows = [
        row("timm, the smallest model of each file", record["timm"].values()),
        row("transformers, image classifiers and segmenters", record["transformers"].values()),
    ]
    about = (
        "Models that white-box marks fit into, with default parameters of greedy residuals. *Names*: carriers of a known family. The others are derived from the "
        "graph: *streams*, later writers of a stream; *thirds*, every third input of the other weights. Not built: classes whose default config or whose libraries do "
        "not allow it."
    )
    return Section("Models with places for a mark", about, COMMAND, COLUMNS.split(", "), rows)


def row(library: str, found: Any) -> list[str]:
    models = list(found)
    built = [item for item in models if "not_built" not in item]
    ways = Counter(item.get("found_by", "none") for item in built)
    fitting = Counter(min(item["subkeys"], 2) for item in built if "subkeys" in item)
    counts = [
        len(models),
        len(built),
        ways["family"],
        ways["streams"],
        ways["thirds"],
        ways["none"],
        fitting[1],
        fitting[2],
    ]
    return [library, *map(str, counts)]


SECTIONS = {"coverage": coverage}
