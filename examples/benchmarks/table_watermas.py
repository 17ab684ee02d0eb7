"""Tables of WaterMAS."""

from table_section import Section, bits, measured_spread, percent, plain, points, read


WATERMAS = "python examples/benchmarks/watermas.py --data FOLDER"
MODELS = {
    "resnet18": "ResNet-18",
    "swin": "Swin",
    "vgg16": "VGG16",
    "mobilenetv3": "MobileNetV3",
    "deeplab": "DeepLab",
}
VARIANTS = {
    "default": "default",
    "paper": "preset `paper`",
    "sharp": "strength 1, radius 0.25",
    "random": "strength 1, radius 0.25, random direction",
    "frozen": "not sharpened",
}


def watermas_fidelity() -> Section:
    rows = [
        [MODELS[model], VARIANTS[variant], *measured_spread(summary["fidelity"][variant])]
        for model, summary in read("watermas")["summary"].items()
        for variant in VARIANTS
        if variant in summary["fidelity"]
    ]
    about = (
        "Marked minus unmarked twin: accuracy on CIFAR-10 (small nets, 5,000 images), mean IoU on CamVid for DeepLab. `not sharpened` only replaces "
        "and freezes the carriers."
    )
    command = f"{WATERMAS} --models {','.join(MODELS)} --sections fidelity --output runs/watermas.json"
    columns = ["net", "variant", "=difference (points)", "=± (95 %)", "=seeds"]
    return Section("WaterMAS: fidelity", about, command, columns, rows)


def watermas_attacks() -> Section:
    summaries = read("watermas")["summary"]
    attacks = [label.split(" | ")[1] for label in summaries["resnet18"]["attacks"] if label.startswith("default | ")]
    rows = []
    for attack in attacks:
        cells: list[str] = []
        for model in MODELS:
            row = summaries[model]["attacks"].get(f"default | {attack}")
            metric = "mIoU" if model == "deeplab" else "accuracy"
            cells += ["", ""] if row is None else [percent(row[metric]), bits(row["worst log2_p"])]
        rows.append([attack, *cells])
    columns = [f"={name}: {what}" for name in MODELS.values() for what in ("metric (%)", "evidence (bits)")]
    about = (
        "Default config, three seeds: the mean of the task metric, and the weakest evidence. Noise is in units of each layer's spread, pruning the share "
        "of weights, quantisation bits per weight, fine-tuning in units of the training rate."
    )
    command = (
        f"{WATERMAS} --models resnet18 --attack-images 1000 --output runs/watermas.json\n"
        f"{WATERMAS} --models vgg16,mobilenetv3,swin,deeplab --attack-epochs 0.5 --output runs/watermas.json"
    )
    return Section("WaterMAS: attacks", about, command, ["attack", *columns], rows)


def sharpening() -> Section:
    rows = []
    for model, summary in read("watermas")["summary"].items():
        for variant in VARIANTS:
            judged = summary.get(f"{variant} adds to the cost of attacks", {}).get("judged")
            if judged:
                rows.append([MODELS[model], VARIANTS[variant], *measured_spread(judged)])
    about = (
        "What sharpening adds to the cost of an attack (accuracy before minus after), beyond what the attack costs with frozen carriers; mean of noise "
        f"0.2 and 0.3 and of 60 and 70 % pruning, paired by seed. Of {len(rows)} such intervals {0.05 * len(rows):.0f} leaves out zero by chance."
    )
    command = (
        f"{WATERMAS} --models {','.join(MODELS)} --sections attacks --output runs/watermas.json\n"
        "python examples/benchmarks/watermas_report.py runs/watermas.json --output runs/summary.json --plot runs"
    )
    columns = ["net", "variant", "=added cost (points)", "=± (95 %)", "=seeds"]
    return Section("WaterMAS: does sharpening pay", about, command, columns, rows)


def interception() -> Section:
    rows = []
    for label, row in read("watermas")["summary"]["resnet18"]["interception"].items():
        variant, _, done = label.partition(" | ")
        rows.append([VARIANTS[variant], done, percent(row["accuracy"]), percent(row["ber"])])
    about = "A thief who has the key draws the carriers anew, then fine-tunes with some images to mend the damage. ResNet-18, mean of three seeds."
    command = f"{WATERMAS} --models resnet18 --sections interception --variants sharp,frozen,paper --output runs/watermas.json"
    columns = ["variant", "what the thief did", "=accuracy (%)", "=wrong bits (%)"]
    return Section("WaterMAS: a thief with the key", about, command, columns, rows)


def capacity() -> Section:
    rows = []
    for label, row in read("watermas")["summary"]["resnet18"]["capacity"].items():
        size, _, attack = label.partition(" | ")
        numbers = (percent(row["accuracy"]), percent(row["worst ber"]), bits(row["worst log2_p"]))
        rows.append([size.removesuffix(" bits"), attack, *numbers])
    about = "Bits in one model, ResNet-18: mean accuracy, worst of three seeds otherwise."
    command = f"{WATERMAS} --models resnet18 --sections capacity --output runs/watermas.json"
    columns = ["=bits", "attack", "=accuracy (%)", "=wrong bits (%)", "=evidence (bits)"]
    return Section("WaterMAS: capacity", about, command, columns, rows)


def choice_watermas() -> Section:
    rows = []
    for item in read("choice_watermas")["settings"]:
        setting = ", ".join(f"{plain(key)} {value}" for key, value in item["setting"].items())
        redrawn = points(item["cost of attacks"]["carriers redrawn"])
        rows.append([setting, percent(item["accuracy"]), points(item["mean cost"]), redrawn, str(len(item["seeds"]))])
    about = (
        "Settings tried on images held out, by a rule written down before. It names one that adds nothing to frozen carriers (strength 0), so the default "
        "was left."
    )
    command = "python examples/benchmarks/choose_watermas.py --data FOLDER --output runs/choice.json"
    columns = ["setting", "=accuracy (%)", "=cost of attacks (points)", "=carriers redrawn (points)", "=seeds"]
    return Section("WaterMAS: settings", about, command, columns, rows)


def imperceptibility() -> Section:
    row = read("watermas")["models"]["resnet18"]["imperceptibility"]["histogram detector"]
    rows = [
        [name.removeprefix("accuracy, "), str(row["models"]), percent(value)]
        for name, value in row.items()
        if name.startswith("accuracy")
    ]
    about = "A classifier on weight histograms that tries to tell marked nets from unmarked ones; half right is what a coin gives."
    command = f"{WATERMAS} --models resnet18 --sections imperceptibility --output runs/watermas.json"
    return Section("WaterMAS: can one see it", about, command, ["regularisation", "=nets", "=right (%)"], rows)


SECTIONS = {
    "watermas-fidelity": watermas_fidelity,
    "watermas-attacks": watermas_attacks,
    "sharpening": sharpening,
    "interception": interception,
    "capacity": capacity,
    "choice-watermas": choice_watermas,
    "imperceptibility": imperceptibility,
}
