"""
Writes every measured figure of the documentation: `examples/benchmarks/README.md` as a whole, and the blocks between
`<!-- generated: NAME -->` and `<!-- end -->` in the other README files. All of it follows from `results/*.json`, the null table of the package
and `model_cards/results.parquet`.

    python examples/benchmarks/tables.py           # says which files differ; exit status 1 if any does
    python examples/benchmarks/tables.py --write   # writes them
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import table_adapters
import table_costs
import table_coverage
import table_formats
import table_matrix
import table_methods
import table_pretrained
import table_settings
import table_soft_label
import table_structures
import table_watch
import table_watermas
import table_written
from table_section import Section


ROOT = Path(__file__).parents[2]
PAGE = Path(__file__).parent / "README.md"
ROOMS = (
    table_matrix,
    table_costs,
    table_methods,
    table_pretrained,
    table_settings,
    table_soft_label,
    table_watermas,
    table_written,
    table_adapters,
    table_coverage,
    table_structures,
    table_formats,
    table_watch,
)
SECTIONS: dict[str, Callable[..., Section]] = {name: make for room in ROOMS for name, make in room.SECTIONS.items()}
PARTS = {
    "All methods": "matrix families fidelity",
    "False positives": "laws nulls structure-nulls structure-keys shipped-nulls seed-search one-verdict",
    "Settings": "settings settings-said forecasts",
    "Models": "coverage copies copies-types ports formats",
    "Time": "steps verify-speed cold-start",
    "Pretrained nets": "pretrained headlines choice-pretrained told",
    "Greedy residuals and function-coupled rules": "stacked-digits stacked-cifar10 choice-function-coupled",
    "Without training": "written written-survival written-first written-folder",
    "Adapters": "adapters",
    "Certified": "certificates certified-attacks certify-speed certified-schedules",
    "Soft labels (usp, csp)": "soft-label soft-label-attacks soft-label-answers soft-label-nulls detector choice-soft-label "
    "mirrored tracing latency",
    "WaterMAS": "watermas-fidelity watermas-attacks sharpening interception capacity choice-watermas imperceptibility",
    "Watching": "watch watch-killed watch-budget",
    "Alignment": "structure-families aligned-large aligned-trained aligned-nulls rebasin",
}
INTRODUCTION = """<!-- Written by `python examples/benchmarks/tables.py --write`; edit that and not this page. -->
# What was measured

Every number in these tables is read from a file in [`results/`](results) or from [`model_cards/results.parquet`](../../model_cards/README.md), and a
test fails when one differs. Below each table stands the command that makes its file again, often of the first seed (`--seed 1` and so on for the others); `FOLDER` is where the data set lies
(parquet files of CIFAR-10, or a folder with `cifar10` and `camvid` for WaterMAS). `python examples/benchmarks/tables.py --write` then writes this page.

How to read the numbers:

* **evidence (bits)**: how surely a mark is there. n bits say that a key that has nothing to do with the model matches so well with a probability of
  at most 2^-n. A claim needs 64 bits if the key is bound to a public random value, 128 if not. More than 256 is shown as 256.
* **points**: percentage points of accuracy. A difference is the marked model minus its unmarked *twin*: same seed and recipe, and the same data with the images that the key set aside.
* **± (95 %)**: half of the 95 % interval of a mean over seeds (Student's t). With two or three seeds it is wide, and says so.

Tables that are not here have no results file: `make test` measures how much a check of a remote repository reads
(`tests/verification/test_remote_verification.py`) and which changes of 15 backbones alignment undoes (`tests/verification/alignment`).
"""
BLOCK = re.compile(r"(<!-- generated: ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def page() -> str:
    """The page of all tables."""
    lines = [INTRODUCTION]
    for part, names in PARTS.items():
        lines.append(f"## {part}\n")
        for section in (SECTIONS[name]() for name in names.split()):
            lines.append(f"### {section.title}\n\n{section.block()}\n")
    return "\n".join(lines)


def block(call: str) -> str:
    """What stands between the markers of one block: `methods`, `survival usp`, or the name of a table of the page."""
    name, *arguments = call.split()
    if name == "methods":
        return table_matrix.chooser()
    if name == "survival":
        return table_matrix.survival(*arguments).block()
    return SECTIONS[name](*arguments).block()


def with_blocks(text: str) -> str:
    """A guide with its blocks made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{block(found[2])}\n{found[3]}", text)


def guides() -> list[Path]:
    """Every README of the repository but the page itself and the cards, which `hf-watermark benchmark` writes."""
    found = [ROOT / "README.md", *(ROOT / "hf_watermark").rglob("README.md"), *(ROOT / "examples").rglob("README.md")]
    return sorted(path for path in found if path != PAGE)


def made() -> dict[Path, str]:
    """Every file that holds measured figures, as it should be."""
    return {path: with_blocks(path.read_text()) for path in guides()} | {PAGE: page()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write what differs")
    write = parser.parse_args().write
    differing = {path: text for path, text in made().items() if not path.exists() or path.read_text() != text}
    for path, text in differing.items():
        print(f"{'written' if write else 'differs'}: {path.relative_to(ROOT)}")
        if write:
            path.write_text(text)
    return int(bool(differing) and not write)


if __name__ == "__main__":
    raise SystemExit(main())
