"""Table of marks in LoRA adapters."""

from typing import Any

from table_section import Section, bits, plain, read, spread


COMMAND = "python examples/benchmarks/adapters.py --output runs/adapters.json"
COLUMNS = (
    "net, rank, =sub-keys, =difference (points), =± (95 %), =seeds, =adapter (bits), =adapter on base (bits), =merged (bits), =trained again (bits), "
    "=unmarked (bits)"
)


def adapters() -> Section:
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for label, row in read("adapters")["lora"].items():
        net, _, rank = label.partition(" | ")[0].partition(", rank ")
        groups.setdefault((net, int(rank)), []).append(row)
    rows = []
    for (net, rank), found in sorted(groups.items()):
        difference = spread([row["accuracy"] - row["twin_accuracy"] for row in found])
        forms = ("adapter", "adapter_and_base", "merged", "trained_again")
        evidence = [bits(max(row[form] for row in found)) for form in forms]
        unmarked = bits(min(row["twin_as_suspect"] for row in found))
        rows.append([plain(net), str(rank), str(found[0]["subkeys"]), *difference, *evidence, unmarked])
    about = (
        "Greedy residuals in LoRA adapters that teach a net of upright digits the turned ones; 256 bits per sub-key in groups of 32. `vit` has adapters on the "
        "linear layers of its blocks, `resnet` on its convolutions. *Difference*: accuracy of base and saved adapter minus that of the unmarked adapter of the same "
        "seed, data and recipe. Evidence is the weakest over the seeds; that of the unmarked adapter under the same key is the strongest. *Trained again*: all weights of "
        "the merged model, at the base's training rate, on turned and mirrored digits."
    )
    return Section("Marks in adapters", about, COMMAND, COLUMNS.split(", "), rows)


SECTIONS = {"adapters": adapters}
