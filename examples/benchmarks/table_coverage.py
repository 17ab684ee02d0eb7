"""Table of the models that have places for a mark in their weights."""

from collections import Counter
from collections.abc import Collection
from typing import Any

from table_section import Section, read


COMMAND = "python examples/benchmarks/coverage.py --output runs/coverage.json"
COLUMNS = "library, =models, =built, =by names, =by streams, =by thirds, =none, =one sub-key, =two or more, =over 3 s"
MOST_SECONDS = 3


def coverage() -> Section:
    record = read("coverage")
    timm, files = record["timm"], {row["file"] for row in record["timm"].values()}
    rows = [
        row("timm, the smallest model of each file", smallest(record)),
        row(f"timm, all {len(timm)} that were measured", timm.values()),
        row("transformers, image classifiers and segmenters", record["transformers"].values()),
    ]
    about = (
        f"Models that white-box marks fit into, with default parameters of greedy residuals; timm lists {len(record['sizes'])} models in {len(files)} files. "
        "*Names*: carriers of a known family. The others are derived from the graph: *streams*, "
        "later writers of a stream; *thirds*, every third input of the other weights. Not built: classes whose default config or whose libraries do not allow it. "
        f"*Over {MOST_SECONDS} s*: layouts that took longer on one shared processor. `coverage.png` draws the weights that may carry against the size."
    )
    return Section("Models with places for a mark", about, COMMAND, COLUMNS.split(", "), rows)


def smallest(record: Any) -> list[Any]:
    """Of every file the row of its smallest model."""
    found: dict[str, tuple[int, Any]] = {}
    for name, item in record["timm"].items():
        size = record["sizes"][name].get("parameters", 0)
        if item["file"] not in found or size < found[item["file"]][0]:
            found[item["file"]] = size, item
    return [item for _, item in found.values()]


def row(library: str, models: Collection[Any]) -> list[str]:
    built = [item for item in models if "not_built" not in item]
    ways = Counter(item.get("found_by", "none") for item in built)
    fitting = Counter(min(item["subkeys"], 2) for item in built if "subkeys" in item)
    slow = sum(item.get("seconds", 0) > MOST_SECONDS for item in built)
    counts = [
        len(models),
        len(built),
        ways["family"],
        ways["streams"],
        ways["thirds"],
        ways["none"],
        fitting[1],
        fitting[2],
        slow,
    ]
    return [library, *map(str, counts)]


SECTIONS = {"coverage": coverage}
