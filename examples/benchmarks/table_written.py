"""Tables of marks that were written into finished nets, without training."""

from typing import Any

from table_section import Section, bits, percent, plain, read


COMMAND = (
    "python examples/benchmarks/written.py --output runs/written.json\n"
    "python examples/benchmarks/written.py --nets efficientnet_lite0 --photographs FOLDER --output runs/written.json"
)
COLUMNS = "net, mark, images, =answers kept (%), =worst key, =KL (nats), =worst key, =largest change (%), =evidence (bits), =seconds, =keys"


def fidelity() -> Section:
    groups: dict[str, list[dict[str, Any]]] = {}
    for label, row in read("written")["fidelity"].items():
        groups.setdefault(label.partition(" | ")[0], []).append(row)
    rows = []
    for label, found in groups.items():
        net, *mark, images = label.split(", ")
        kept, moved = [row["agreement"] for row in found], [row["kl"] for row in found]
        cost = (percent(mean(kept)), percent(min(kept)), f"{mean(moved):.5f}", f"{max(moved):.5f}")
        change = percent(max(row["largest_change"] for row in found))
        evidence = bits(max(row["log2_p"] for row in found))
        seconds = f"{mean([row['processor_seconds'] for row in found]):.1f}"
        rows.append([plain(net), plain(", ".join(mark)), images, *cost, change, evidence, seconds, str(len(found))])
    about = (
        "`mark_model` on finished nets, one core. `efficientnet_lite0` has its ImageNet weights and 4.7 million parameters, and is asked photographs that "
        "chose nothing; the digits nets are asked the test images, `small_resnet` with 512 bits per sub-key, the tiny nets with two sub-keys of 256 bits (WaterMAS 128). "
        "*Answers kept*: share of test images with the same first class as before. *Largest change*: of one weight matrix against its norm. Evidence "
        "is that of the weakest key; seconds are processor time, statistics of the inputs and the measurement of the cost included."
    )
    return Section("Marks written without training", about, COMMAND, COLUMNS.split(", "), rows)


def survival() -> Section:
    found = read("written")["survival"]
    attacks = list(next(iter(found.values())))
    rows = []
    for label, row in found.items():
        net, _, mark = label.partition(", ")
        rows.append([plain(net), plain(mark), *(bits(row[attack]) for attack in attacks)])
    columns = ["net", "mark", *(f"={attack}" for attack in attacks)]
    about = "Evidence in bits after an attack, one key each, digits. Fine-tuning is one epoch on all training images."
    return Section("What marks without training survive", about, COMMAND, columns, rows)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


SECTIONS = {"written": fidelity, "written-survival": survival}
