"""Tables of what all methods share: false positives, training steps, verification, and what alignment undoes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from table_section import RESULTS, Section, bits, percent, plain, read


NULL_TABLE = Path(__file__).parents[2] / "hf_watermark" / "verification" / "null_tables" / "digits_small_resnet.json"
LEVELS = ("0.01", "0.001", "0.0001", "1e-05")
COUNTS = ["=keys tried", *(f"=p ≤ {level}" for level in LEVELS)]


def counts(rows: list[dict[str, Any]], level: str = "p") -> list[str]:
    found = {str(row[level]): row["count"] for row in rows}
    return [str(found.get(name, "")) for name in LEVELS]


# False positives


def laws() -> Section:
    rows = [
        [plain(row["method"]), row["answers"], str(row["pairs"]), *counts(row["exceedances"])]
        for row in read("laws")["rows"]
    ]
    first = read("laws")["rows"][0]["exceedances"]
    rows.append(
        [
            "limit (99.9 %)",
            "",
            str(read("laws")["rows"][0]["pairs"]),
            *counts([row | {"count": row["most"]} for row in first]),
        ]
    )
    about = (
        "Random keys against fixed answers or weights that no key made: random ones, ones that always say the same, and ones that are chosen to "
        "look like a mark. A row counts the keys that pass each level; the last row is the most that chance allows."
    )
    command = "python examples/benchmarks/laws.py --pairs 1000000 --output runs/laws.json"
    return Section("False positives on fixed answers", about, command, ["method", "answers", *COUNTS], rows)


def nulls() -> Section:
    record, rows = read("null"), []
    tried = int(record["options"]["models"]) * int(record["options"]["keys"])
    for title, part, keys in (
        ("unmarked models", record["null"], tried),
        ("a marked model, other keys", record["decoys_on_marked_model"], int(record["options"]["decoys"])),
    ):
        rows += [[plain(method), title, str(keys), *counts(found, "level")] for method, found in part.items()]
    about = (
        "Keys tried on models that do not carry their mark. Chance alone gives the number of keys times the level; the file also holds the "
        "limits."
    )
    return Section(
        "False positives on models",
        f"{about} Digits, {record['options']['models']} unmarked models.",
        "python examples/benchmarks/null.py --output runs/null.json",
        ["method", "suspects", *COUNTS],
        rows,
    )


def seed_search() -> Section:
    rows = [
        [plain(method), str(row["seeds"]), bits(row["best_log2_p"]), bits(row["expected_log2_p"])]
        for method, row in read("null")["seed_search"].items()
    ]
    about = "A forger without a mark tries many keys on somebody else's model and keeps the best. A claim needs 64 bits at least."
    columns = ["method", "=keys tried", "=best evidence (bits)", "=expected (bits)"]
    return Section(
        "Searching for a key", about, "python examples/benchmarks/null.py --output runs/null.json", columns, rows
    )


def shipped_nulls() -> Section:
    record = json.loads(NULL_TABLE.read_text())
    rows = [
        [plain(row["method"]), str(row["pairs"]), *counts(row["exceedances"])[:3], bits(row["smallest_log2_p"])]
        for row in record["entries"]
    ]
    columns = ["method", *COUNTS[:4], "=strongest by chance (bits)"]
    about = "All methods on unmarked digits models: the table that `verify --null-table` takes as one more control."
    return Section(
        "False positives of every method",
        about,
        "hf-watermark calibrate --models 20 --keys 50 --output null.json",
        columns,
        rows,
    )


def one_verdict() -> Section:
    rows = [
        [row["model"], str(row["runs"]), str(len(row["verdicts"])), str(row["different_evidences"])]
        for row in read("one_verdict")["rows"]
    ]
    about = "The same check many times over: the controls follow from key and suspect, so nothing may change: one verdict, one evidence."
    command = "python examples/benchmarks/one_verdict.py --runs 200 --output runs/one_verdict.json"
    columns = ["model", "=runs", "=distinct verdicts", "=distinct evidence"]
    return Section("One check, one verdict", about, command, columns, rows)


# Time


def steps() -> Section:
    rows, commands = [], []
    names = [
        "greedy_residuals",
        "function_coupled",
        "stacked",
        "certified",
        "watermas",
        "watermas_paper",
        "usp",
        "csp",
    ]
    for path in sorted(RESULTS.glob("overhead*.json")):
        record = json.loads(path.read_text())
        options, found = record["options"], record["rows"]
        ratios = [found.get(name, {}) for name in names]
        length = int(options.get("length", 0))
        kind = "whole_ratio" if length else "window_ratio"
        cells = [f"{row.get(kind, row['ratio']):.2f}" if row else "" for row in ratios]
        settings = ("model", "size", "batch", "threads", "steps")
        rows.append([*(options[name] for name in settings), f"{length:,}" if length else "", *cells])
        named = (*settings, "warmup", "device", *(["length"] if length else []))
        flags = " ".join(f"--{name} {options[name]}" for name in named)
        chosen = " ".join(name for name in found if name != "plain")
        commands.append(f"python examples/benchmarks/overhead.py {flags} --methods {chosen}")
    about = (
        "Time of a training step as a ratio to the plain `Trainer`, alternated in one process (over windows of four steps where the file has "
        "them), single precision, on cores that other work used too: ratios scatter by several per cent. `stacked` is greedy residuals with "
        "function-coupled; `paper` is a preset that sharpens in every step. Where the length of the training was given, methods adapt to it, black-box marks are read "
        "once in these steps, as in every tenth of it, and the ratio is that of all steps together; not of WaterMAS, which does nothing in the first ones. Certified makes one noisy pass of its triggers in a step, whatever "
        "the batch. No GPU is among these rows."
    )
    heads = [f"={plain(name)}" for name in names]
    columns = ["net", "=image size", "=batch", "=threads", "=steps", "=of a training of", *heads]
    return Section("Training step", about, "\n".join(dict.fromkeys(commands)), columns, rows)


def verify_speed() -> Section:
    one, many = read("verify_speed"), read("verify_scale")
    found = [one | {"memory_mb": None}, *many["rows"]]
    rows = [
        [
            f"{row['parameters'] / 1e6:.1f}",
            str(row["subkeys"]),
            f"{row['median_seconds']:.1f}",
            f"{row['bytes'] / 1e6:.0f}",
            f"{row['bytes_read'] / 1e6:.0f}",
            "" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}",
        ]
        for row in found
    ]
    columns = "=parameters (million), =sub-keys, =seconds, =file (MB), =read (MB), =memory (MB)".split(", ")
    command = (
        "python examples/benchmarks/verify_speed.py --repeat 5 --threads 1\n"
        "python examples/benchmarks/verify_speed.py --sizes 1e6 1e7 1e8 1e9 --repeat 3 --threads 1 --output runs/verify_scale.json"
    )
    about = (
        f"Reading a mark in the weights of a local file after imports, with {one['decoys_per_subkey']} control keys per sub-key, one thread: "
        "ResNet-50 first, then ViTs of growing size. Of a repository on the Hub only these bytes travel (`tests/verification/test_remote_verification.py` states the "
        "limits)."
    )
    return Section("Verifying", about, command, columns, rows)


def cold_start() -> Section:
    record = read("cold_start")
    rows = [
        [name, f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}", f"{row['peak_mb']:.0f}"]
        for name, row in record["medians"].items()
    ]
    rounds = record["options"]["rounds"]
    about = f"From an empty process, medians of {rounds} rounds; load of the machine before: {record['options']['load'][0]}."
    command = f"python examples/benchmarks/cold_start.py --rounds {rounds} --output runs/cold_start.json"
    return Section("Starting", about, command, ["what", "=seconds", "=CPU seconds", "=memory (MB)"], rows)


# Alignment


def readings(row: dict[str, Any], *states: str) -> Iterator[str]:
    """Share of right bits in several states of a suspect; empty where nothing could be read."""
    for state in states:
        yield percent(row.get(state, {}).get("bits_right"))


CHANGES = (
    "*Everything free*: channels permuted and rescaled, residual streams rotated, heads and bottlenecks mixed. *Split units*: units in two that share their outgoing "
    "weights."
)


def aligned_large() -> Section:
    rows = []
    for label, row in read("alignment")["large"].items():
        net, _, change = label.partition(" | ")
        for method in ("greedy_residuals", "watermas"):
            if method in row:
                cells = readings(row[method], "before", "attacked", "aligned")
                evidence = bits(row[method]["aligned"]["log2_p"])
                share = percent(row["report"]["carriers_readable"])
                rows.append([net, change, plain(method), *cells, share, evidence, str(row["seconds"])])
    columns = ["net", "change", "method", "=right before (%)", "=changed (%)", "=aligned (%)", "=readable (%)"]
    about = (
        f"Nets of full width with random weights, marked, then changed. {CHANGES} *Clique units*: pairs of equal units beside them whose outgoing weights cancel. All changes but the last of each net leave every answer as it was. "
        "Half of the bits are right by chance; empty: nothing could be read. Seconds are for alignment alone, one thread on busy cores."
    )
    command = "python examples/benchmarks/alignment.py --sections large --output runs/alignment.json"
    return Section("Alignment at full width", about, command, [*columns, "=evidence (bits)", "=seconds"], rows)


def aligned_trained() -> Section:
    rows = []
    for label, row in read("alignment")["trained"].items():
        place, _, change = label.partition(" | ")
        net, _, method = place.partition(", ")
        states = ("before", "attacked", "aligned", "tuned only", "aligned, tuned")
        evidence = bits(row["aligned, tuned"].get("log2_p"))
        rows.append([net, plain(method), change, *readings(row, *states), evidence])
    columns = ["net", "method", "change", "=right before (%)", "=changed (%)", "=aligned (%)", "=tuned only (%)"]
    about = (
        "Digits nets of five families, changed without changing an answer, and fine-tuned for an epoch at a tenth of the training rate: alone, "
        "and after the change. The evidence is that of the last state. Nets in which the certified mark was weak before were too small for it. "
        f"{CHANGES}"
    )
    command = "python examples/benchmarks/alignment.py --sections trained --output runs/alignment.json"
    heads = [*columns, "=changed, tuned, aligned (%)", "=evidence (bits)"]
    return Section("Alignment of trained nets", about, command, heads, rows)


def aligned_nulls() -> Section:
    record, rows = read("alignment"), []
    found = {
        (label.removesuffix(" | all"), method): part
        for label, both in record["nulls"].items()
        if label.endswith(" | all")
        for method, part in both.items()
        if isinstance(part, dict)
    }
    found["resnet", "certified"] = record["certified_nulls"]["all"]
    for (net, method), part in found.items():
        passed = [str(part["random keys"][level]) for level in LEVELS[:3]]
        strongest, agreement = bits(part["smallest log2 p"]), percent(part.get("mean agreement"))
        rows.append([net, plain(method), str(part["pairs"]), *passed, strongest, agreement])
    columns = [
        "net",
        "method",
        *COUNTS[:4],
        "=strongest of the owner's key (bits)",
        "=signs alike, nothing left out (%)",
    ]
    about = (
        "Does alignment make unmarked models look marked? Unmarked digits nets of each family, aligned to the owner's model, under random keys, and once each under the owner's. "
        "Nets of one task resemble each other (last column), which is why channels that are not recognised are left out."
    )
    command = "python examples/benchmarks/alignment.py --sections nulls,certified_nulls --output runs/alignment.json"
    return Section("False positives after alignment", about, command, columns, rows)


def rebasin() -> Section:
    rows = []
    for label, row in read("alignment")["rebasin"].items():
        net, _, tool = label.partition(" | ")
        rows.append([net, tool, percent(row["weights_restored"]), str(row["seconds"])])
    about = "A timm net with every channel permuted, once, two threads, against the package `rebasin`."
    command = "python examples/benchmarks/alignment.py --sections rebasin --output runs/alignment.json"
    return Section("Alignment compared", about, command, ["net", "tool", "=rows restored (%)", "=seconds"], rows)


SECTIONS = {
    "laws": laws,
    "nulls": nulls,
    "shipped-nulls": shipped_nulls,
    "seed-search": seed_search,
    "one-verdict": one_verdict,
    "steps": steps,
    "verify-speed": verify_speed,
    "cold-start": cold_start,
    "aligned-large": aligned_large,
    "aligned-trained": aligned_trained,
    "aligned-nulls": aligned_nulls,
    "rebasin": rebasin,
}
