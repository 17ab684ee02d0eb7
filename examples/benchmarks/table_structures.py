"""Tables of derived layouts: what an unmarked net reads, what alignment brings back, and marks under other libraries' names."""

from collections.abc import Iterator
from typing import Any

from table_section import Section, bits, plain, read


COMMAND = "python examples/benchmarks/structures.py --sections {} --output runs/structures.json"


def nulls() -> Section:
    found = read("structures")["nulls"]
    rows = []
    for label, row in found.items():
        family, _, kind = label.partition(" | ")
        if kind == "all":
            counts = [str(row[name]) for name in ("nets", "readings", "found", "at level B or better")]
            rows.append([plain(family), *counts, bits(row["smallest log2 p"])])
    about = (
        "Nets of 20 other seeds, trained on the digits, read under the keys of a marked one (greedy residuals and WaterMAS): as they are, with all names gone, "
        "with a block's number or stage moved on, and aligned to the start of the marked one. Evidence is the strongest of all these readings."
    )
    columns = "family, =nets, =readings, =found, =at level B, =strongest evidence (bits)".split(", ")
    return Section("Unmarked nets of families with derived layouts", about, COMMAND.format("nulls"), columns, rows)


def keys() -> Section:
    rows = []
    for family, found in read("structures")["keys"].items():
        for way in ("as they are", "aligned"):
            for item in found[way]:
                counts = [str(item["count"]), f"{item['expected']:g}", str(item["limit"])]
                rows.append([plain(family), way, f"{item['level']:g}", *counts])
    about = (
        "100,000 random keys of greedy residuals, each on four unmarked nets as they are and on two aligned: how many have p below a level, how many an exact "
        "test expects at most, and the largest count that a one-sided test at 99.9 % still calls nominal."
    )
    columns = "family, nets, =level, =count, =expected at most, =limit".split(", ")
    return Section("Random keys on derived layouts", about, COMMAND.format("keys"), columns, rows)


def families() -> Section:
    rows = []
    for file, row in read("structures")["families"].items():
        if file == "all":
            continue
        moved, split = row.get("moved", {}), row.get("split", {})
        reasons = [item["reason"] for item in (row, moved, split) if "reason" in item]
        rows.append(
            [file, f"`{row['model']}`", *(_share(item, "aligned") for item in (moved, split)), *(reasons[:1] or [""])]
        )
    about = (
        f"A small model of each file of timm ({unmeasured()}; the smallest that is listed, or a narrower one of its class), random weights, greedy residuals of 128 "
        "bits: per cent of the bits that are right once every channel was permuted and rescaled where that is free, and once a quarter of the units was split in two "
        "and every normalisation folded away, each aligned to the model before the mark. An empty cell has its reason in the last column."
    )
    columns = "file of timm, model, =permuted and rescaled (%), =units split (%), reason".split(", ")
    return Section("What alignment brings back", about, COMMAND.format("families"), columns, rows)


def _share(item: dict[str, Any], name: str) -> str:
    return f"{100 * item[name]:.1f}" if name in item else ""


def ports() -> Section:
    rows = []
    for label, row in read("copies")["ports"].items():
        architecture, _, source = label.partition(": ")
        for name, verdict in row.items():
            if f"{name}_log2_p" in row and not name.startswith("unmarked"):
                cells = [verdict, bits(row[f"{name}_log2_p"]), row[f"unmarked_{name}"]]
                rows.append([plain(architecture), source, name, *cells])
    about = (
        "A small model with random weights in one library's spelling, 160 bits of greedy residuals written into it, read under the names of another library; "
        "and the same without the mark."
    )
    columns = "architecture, marked in, read in, verdict, =evidence (bits), unmarked".split(", ")
    command = "python examples/benchmarks/copies.py --sections ports --output runs/copies.json"
    return Section("Marks under the names of other libraries", about, command, columns, rows)


def copies() -> Section:
    about = (
        f"The smallest model of each of timm's files ({unmeasured()}), or a narrower one of its class, random weights, marks of 160 bits written without training, read from a copy "
        "under other names and a prefix, in bfloat16 and other shards; and the same without the mark. An empty cell has its reason in the last column."
    )
    rows = [[family, f"`{model}`", *cells] for (family, _, model), cells in read_copies("families")]
    columns = "family, model, =greedy residuals (bits), =watermas (bits), unmarked, reason".split(", ")
    command = "python examples/benchmarks/copies.py --sections families --output runs/copies.json"
    return Section("Marks in copies of every family", about, command, columns, rows)


def copies_of_types() -> Section:
    about = (
        "The same for the image classifiers and segmenters of transformers that their default config builds, with two layers where the "
        "config has a number of them."
    )
    rows = [[f"`{name}`", *cells] for (name, _, _), cells in read_copies("types")]
    columns = "model, =greedy residuals (bits), =watermas (bits), unmarked, reason".split(", ")
    command = "python examples/benchmarks/copies.py --sections types --output runs/copies.json"
    return Section("Marks in copies of the models of transformers", about, command, columns, rows)


def unmeasured() -> str:
    names = ", ".join(f"`{name}`" for name in read("structures")["families"]["all"]["not measured"])
    return f"not measured: {names}"


def read_copies(kind: str) -> Iterator[tuple[tuple[str, str, str], list[str]]]:
    """Of every model its name in three parts, and the cells of both methods."""
    found: dict[str, dict[str, Any]] = {}
    for label, row in read("copies")[kind].items():
        model, _, method = label.rpartition(": ")
        found.setdefault(model, {})[method] = row
    for label, row in found.items():
        cells = [row.get(method, {}) for method in ("greedy_residuals", "watermas")]
        shown = [bits(cell["copy_log2_p"]) if "copy_log2_p" in cell else "" for cell in cells]
        unmarked = dict.fromkeys(cell["unmarked_copy"] for cell in cells if "unmarked_copy" in cell)
        said = (cell.get("not_built") or cell.get("not_marked") or cell.get("copy_reason") for cell in cells)
        reasons = dict.fromkeys(reason for reason in said if reason)
        yield (
            label.partition(": "),
            [*shown, ", ".join(unmarked), plain("; ".join(reasons)).replace("|", "\\|").replace("\n", " ")],
        )


SECTIONS = {
    "structure-nulls": nulls,
    "structure-keys": keys,
    "structure-families": families,
    "copies": copies,
    "copies-types": copies_of_types,
    "ports": ports,
}
