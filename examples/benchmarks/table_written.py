"""Tables of marks that were written into finished nets, without training."""

from typing import Any

from table_section import Section, bits, percent, plain, read

from hf_watermark.evaluation.matrix.summary import mean


COMMAND = (
    "python examples/benchmarks/written.py --output runs/written.json\n"
    "python examples/benchmarks/written.py --nets efficientnet_lite0 --photographs FOLDER --output runs/written.json\n"
    "python examples/benchmarks/written_nets.py --cifar10 FOLDER\n"
    "python examples/benchmarks/written.py --nets cifar10 --cifar10 FOLDER --output runs/written.json"
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
        "chose nothing; the digits nets are asked the test images, `small_resnet` with 512 bits per sub-key, the tiny nets with two sub-keys of 256 bits (WaterMAS 128); the "
        "CIFAR-10 nets (0.1 to 0.4 million parameters, trained for one epoch, the ResNet for three) are asked 2,000 test images. "
        "*Answers kept*: share of test images with the same first class as before. *Largest change*: of one weight matrix against its norm. Evidence "
        "is that of the weakest key; seconds are processor time, statistics of the inputs and the measurement of the cost included. "
        "`written.png` draws the cost against the bits."
    )
    return Section("Marks written without training", about, COMMAND, COLUMNS.split(", "), rows)


def survival() -> Section:
    found = read("written")["survival"]
    attacks = list(dict.fromkeys(name for row in found.values() for name in row if name != "none"))
    rows = []
    for label, row in sorted(found.items()):
        name, _, way = label.partition(" | ")
        net, _, mark = name.partition(", ")
        rows.append([plain(net), plain(mark), way, *(left(row.get(attack)) for attack in attacks)])
    columns = ["net", "mark", "put in", *(f"={attack}" for attack in attacks)]
    about = (
        "Evidence in bits after an attack and, in brackets, the accuracy in per cent that it leaves, where that was measured; one key each. *Trained* marks "
        "were put in by `GreedyResidualsTrainer` while the net of the same recipe learned. Fine-tuning is with AdamW at a multiple of the training rate: one epoch on all "
        "training images of the digits, or on 5,000 to 10,000 of CIFAR-10; for EfficientNet-Lite0 two epochs of ten steps on the photographs that are not asked, at 1e-3."
    )
    return Section("What marks without training survive", about, COMMAND, columns, rows)


def left(measured: dict[str, float] | None) -> str:
    """What an attack left."""
    if measured is None:
        return ""
    accuracy = measured.get("accuracy")
    return bits(measured["log2_p"]) + ("" if accuracy is None else f" ({percent(accuracy)})")


def folder() -> Section:
    found = read("written_folder")
    rows = [
        [
            step,
            f"{found[step]['memory_gb']:.2f}",
            f"{found[step]['seconds']:.0f}",
            f"{found[step]['processor_seconds']:.0f}",
        ]
        for step in ("mark", "verify")
    ]
    mark = found["mark"]
    about = (
        f"`mark_model` on a folder of {found['parameters'] / 1e9:.2f} billion parameters ({found['folder_gb']:.1f} GiB in eight shards, a vision transformer "
        f"of the size of ViT-g with random weights, for pictures of 112 pixels), without images, one core of a machine that was busy with other work. It got {mark['subkeys']} sub-keys; forecast: "
        f"KL {mark['kl']:.1e}, {percent(mark['agreement'])} % of the answers kept on {mark['pictures']} synthetic pictures. Memory is the most that the process held, "
        "the libraries' own 0.8 GiB included."
    )
    command = "python examples/benchmarks/written_folder.py --output runs/written_folder.json"
    columns = ["step", "=memory (GiB)", "=seconds", "=processor seconds"]
    return Section("A folder that is not loaded", about, command, columns, rows)


def first() -> Section:
    groups: dict[str, dict[str, list[Any]]] = {}
    for label, row in read("written_first")["runs"].items():
        run, _, way = label.partition(" | ")[0].rpartition(", ")
        groups.setdefault(run, {}).setdefault(way, []).append(row)
    rows = []
    for run, ways in groups.items():
        for way, found in ways.items():
            shares = [mean([row[field] for row in found]) for field in ("accuracy", "match_rate")]
            weakest = bits(max(row["log2_p"] for row in found))
            seconds = f"{mean([row['processor_seconds'] for row in found]):.1f}"
            rows.append([run, way, str(len(found)), *map(percent, shares), weakest, seconds])
    about = (
        "Greedy residuals with the default config that are written before the first step and then kept (`written_first=True`), against those that the "
        "hinge has to bring in. *Fine-tuned*: two epochs from the finished unmarked net, at a share of its learning rate. Evidence is that of the weakest seed; "
        "seconds are of one core."
    )
    columns = "run, way, =seeds, =accuracy (%), =bits right (%), =evidence (bits), =seconds".split(", ")
    command = "python examples/benchmarks/written_first.py --data FOLDER --output runs/written_first.json"
    return Section("Written first, then kept", about, command, columns, rows)


SECTIONS = {"written": fidelity, "written-survival": survival, "written-first": first, "written-folder": folder}
