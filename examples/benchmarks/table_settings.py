"""Tables of the settings of the Trainer: how a training ends in each, and what was forecast."""

from table_section import Section, bits, percent, plain, read


COMMAND = "python examples/benchmarks/settings.py --output runs/settings.json"
METHODS = ("greedy_residuals", "watermas", "function_coupled", "certified", "usp", "csp")
LIMIT = 64


def grid() -> Section:
    found = read("settings")["settings"]
    names = list(dict.fromkeys(label.rpartition(" | ")[0] for label in found))
    rows = [[name, *(ending(found[f"{name} | {method}"]) for method in METHODS)] for name in names]
    ends = [row["end"] for row in found.values()]
    counts = ", ".join(f"{ends.count(end)} {end}" for end in ("marked", "refused", "warned", "unmarked"))
    about = (
        f"One change at a time of an ordinary run (a tiny ResNet, digits at 16 x 16 pixels, AdamW at 0.006, batches of 40, 30 to 130 steps; "
        f"keys bound to a beacon, so {LIMIT} bits are a claim), {len(names)} settings by {len(METHODS)} methods: {counts}. A number is the evidence in bits, "
        "read from the files that were saved; two settings run twice as long, and those of a ViT learn slowly whatever the setting. *Refused*: an error before the first step. *Warned*: not marked, and the preflight had said so. *Unmarked*: "
        "not marked, and said only after training. `usp` and `csp` as they were before their marks held for mirrored images."
    )
    return Section(
        "Settings of the Trainer", about, COMMAND, ["setting", *(f"={plain(name)}" for name in METHODS)], rows
    )


def ending(row: dict) -> str:
    return bits(row["log2_p"]) if row["end"] == "marked" else f"*{row['end']}*"


def said() -> Section:
    """The sentence of one method for each setting, another one each time that a setting has it."""
    sentences: dict[str, str] = {}
    for label, row in read("settings")["settings"].items():
        if row["end"] in ("refused", "warned"):
            name, _, method = label.rpartition(" | ")
            sentences.setdefault(f"{name} ({row['end']})", f"{plain(method)}: {row['said']}")
    rows = [[place, sentence.replace("|", "\\|")] for place, sentence in sentences.items()]
    about = "What a user is told in the settings above that do not end with a mark, of one method each."
    return Section("What is said before the first step", about, COMMAND, ["setting", "sentence"], rows)


def forecasts() -> Section:
    rows = []
    for label, row in read("settings")["forecasts"].items():
        method, optim, steps, rate = label.split(" | ")
        warns, lost = row["forecast_log2_p"] > -LIMIT, not row["found"]
        verdict = {(True, True): "warns, lost", (True, False): "false alarm", (False, True): "missed"}.get(
            (warns, lost), ""
        )
        told = (
            percent(row["forecast_right"]),
            percent(row["right"]),
            bits(row["forecast_log2_p"]),
            bits(row["log2_p"]),
        )
        rows.append([plain(method), optim, steps, rate, *told, verdict])
    wrong = {word: sum(row[-1] == word for row in rows) for word in ("false alarm", "missed")}
    about = (
        "What the preflight forecasts, and what the run did, in the same setup. Forecasts of white-box marks follow from the weights and the learning "
        f"rates; those of black-box marks have two constants per method, from such runs as these. Of {len(rows)} runs {wrong['false alarm']} are false alarms, and "
        f"{wrong['missed']} are lost without a warning: those lie near the border, or learn less than the fastest that were seen."
    )
    columns = (
        "mark, optimizer, =steps, =rate, =right as forecast (%), =right (%), =bits as forecast, =bits, outcome".split(
            ", "
        )
    )
    return Section("Forecasts before the first step", about, COMMAND, columns, rows)


SECTIONS = {"settings": grid, "settings-said": said, "forecasts": forecasts}
