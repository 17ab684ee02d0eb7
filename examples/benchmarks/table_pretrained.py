"""Tables of marks in a pretrained net, and of what is forecast while a black-box mark is taught."""

from typing import Any

from table_section import Section, bits, percent, plain, read, spread


RUNS = {"short": "10,000 images, 3 epochs", "long": "50,000 images, 6 epochs"}
AFTER = ("mirrored", "fine-tuned at 0.1 x", "fine-tuned at 1 x", "fine-tuned at 1 x, cosine", "BatchNorm anew")
COMMAND = (
    "python examples/benchmarks/pretrained.py --cifar10 FOLDER --output runs/pretrained.json\n"
    "python examples/benchmarks/pretrained.py --cifar10 FOLDER --long --output runs/pretrained.json"
)


def pretrained() -> Section:
    rows = []
    for run, found in read("pretrained").items():
        marked: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        for label, row in found.items():
            method, _, seed = label.partition(" | ")
            if method != "twin":
                marked.setdefault(method, []).append((found[f"twin | {seed}"]["accuracy"], row))
        for method, pairs in marked.items():
            gap, half, seeds = spread([row["accuracy"] - twin for twin, row in pairs])
            weakest = max((row for _, row in pairs), key=lambda row: row["log2_p"])
            twins = sum(twin for twin, _ in pairs) / len(pairs)
            said = "; ".join(line.partition(":")[0] for line in weakest["warned"])
            cells = [evidence(max((row.get(name) for _, row in pairs), key=number)) for name in AFTER]
            rows.append(
                [RUNS[run], plain(method), percent(twins), gap, half, seeds, bits(weakest["log2_p"]), *cells, said]
            )
    about = (
        "EfficientNet-Lite0 with its ImageNet weights (4.7 million parameters) on CIFAR-10 at 64 x 64 pixels: AdamW at 1e-3, cosine, batches of 64, every method "
        "with its defaults. Accuracy on 2,000 test images, which chose nothing. Evidence in bits of the weakest seed: of the model, of the model asked mirrored "
        "images, after fine-tuning for 3 epochs on 2,000 other images at a tenth of the rate, at the whole rate, and at the whole rate as it fell in the training, and "
        "after its BatchNorm statistics are taken anew. A claim needs 64 bits of a black-box mark under a key that is bound to a beacon. The last column is what the training said at its end."
    )
    columns = [
        "run",
        "method",
        "=twin (%)",
        "=gap (points)",
        "=± (95 %)",
        "=seeds",
        "=evidence (bits)",
        *(f"={name}" for name in AFTER),
        "warned",
    ]
    return Section("A pretrained net", about, COMMAND, columns, rows)


def number(value: Any) -> float:
    """log2 p of a reading, which white-box marks have none of under mirrored images."""
    if isinstance(value, dict):
        return value["log2_p"]
    return -float("inf") if value is None else value


def evidence(value: Any) -> str:
    return "" if value is None else bits(number(value))


def told() -> Section:
    record = read("forecasts")
    rows = []
    for label, row in record["runs"].items():
        method, net, epochs, _ = label.split(" | ")
        early = [bits(row.get(f"{name}_at_{share}")) for share in (0.2, 0.5) for name in ("read", "forecast")]
        below = row["log2_p"] > row["target"]
        outcome = {(True, True): "told, below", (True, False): "told in vain", (False, True): "below without a word"}
        said = outcome.get((row["told"] > 0, below), "")
        rows.append([plain(method), plain(net), epochs.split()[0], *early, bits(row["log2_p"]), said])
    found = record["summary"]["all"]
    about = (
        "Digits, default configs, one key a run. At a fifth and at half of a run the mark is read, and taken to grow with the number of steps. Where that "
        f"falls short of the target (96 bits) the owner is told. Of {found['runs']} runs {found['below_target']} ended below the target, "
        f"{len(found['below_without_a_word'])} of these without a word, and {len(found['told_in_vain'])} that were told reached it. Forecasts beyond the target "
        f"counted as the target, their mean absolute error was {found['mean_absolute_error_at_0.2']:.0f} bits at a fifth and "
        f"{found['mean_absolute_error_at_0.5']:.0f} bits at half. Runs of few steps are not read at a fifth."
    )
    columns = "method, net, =epochs, =read at a fifth, =forecast, =read at half, =forecast, =bits, outcome".split(", ")
    command = "python examples/benchmarks/forecasts.py --output runs/forecasts.json"
    return Section("Forecasts while a mark is taught", about, command, columns, rows)


SECTIONS = {"pretrained": pretrained, "told": told}
