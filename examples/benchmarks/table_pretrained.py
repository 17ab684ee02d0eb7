"""Table of marks in a pretrained net."""

from typing import Any

from table_section import Section, bits, percent, plain, read, spread


RUNS = {"short": "10,000 images, 3 epochs", "long": "50,000 images, 6 epochs"}
AFTER = ("mirrored", "fine-tuned at 0.1 x", "fine-tuned at 1 x", "BatchNorm anew")
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
            cells = [evidence(max((row[name] for _, row in pairs), key=number)) for name in AFTER]
            rows.append(
                [RUNS[run], plain(method), percent(twins), gap, half, seeds, bits(weakest["log2_p"]), *cells, said]
            )
    about = (
        "EfficientNet-Lite0 with its ImageNet weights (4.7 million parameters) on CIFAR-10 at 64 x 64 pixels: AdamW at 1e-3, cosine, batches of 64, every method "
        "with its defaults. Accuracy on 2,000 test images, which chose nothing. Evidence in bits of the weakest seed: of the model, of the model asked mirrored "
        "images, after fine-tuning on 2,000 other images at a tenth of the rate and at the whole rate, and after its BatchNorm statistics are taken anew. A claim "
        "needs 64 bits of a black-box mark under a key that is bound to a beacon. The last column is what the training said at its end."
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


SECTIONS = {"pretrained": pretrained}
