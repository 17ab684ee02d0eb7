"""Tables of the CIFAR-10 matrix, which `model_cards/results.parquet` holds, and of fidelity over all results."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from table_section import Section, bits, percent, plain, points, read, table

from hf_watermark.attacks import ATTACKS
from hf_watermark.evaluation import read_table
from hf_watermark.evaluation.matrix.cells import NO_ATTACK, ON_TWIN
from hf_watermark.evaluation.matrix.summary import MethodSummary, Outcome, method_summaries, outcomes
from hf_watermark.evaluation.measured import fidelity_rows
from hf_watermark.mapping import METHODS


TABLE = Path(__file__).parents[2] / "model_cards" / "results.parquet"
COMMAND = (
    "hf-watermark benchmark examples/benchmarks/matrix_cifar10.yaml --data cifar10=FOLDER --output runs/cifar_matrix"
)
# Every attack of the library belongs to one family. The first five are columns of the README.
FAMILIES = {
    "fine-tuning": "finetune lora reset_head transfer",
    "pruning": "magnitude_prune fine_prune structured_prune adversarial_neuron_prune",
    "quantisation": "uniform_quantize int8_quantize int4_quantize cast_dtype onnx_round_trip",
    "distillation": "distill knockoff data_free_extract",
    "reparametrisation": "permute rescale rotate_residual mix_heads mix_bottlenecks dummy_neurons fold_batchnorm flip_batchnorm_signs",
    "noise and statistics": "weight_noise reestimate_batchnorm",
    "other training": "regularize weight_shift soft_label_finetune attention_distill adversarial_finetune occlude_finetune merge merge_sibling",
    "search for triggers": "trigger_unlearn",
    "input filters": "preprocess_input",
    "several in a row": "stack",
}
FAMILY = {attack: family for family, attacks in FAMILIES.items() for attack in attacks.split()}
MAIN = list(FAMILIES)[:5]
RULE = (
    "Survived: the mark is found (64 bits of evidence or more) with every seed. Attacks that leave the thief less than half of the "
    "accuracy are not counted."
)
BEFORE = "as they were before their marks held for mirrored images"
FOLDERS = {"usp": "soft_label", "csp": "soft_label"}


@cache
def matrix() -> tuple[list[MethodSummary], list[Outcome]]:
    rows = read_table(TABLE)
    return method_summaries(rows), outcomes(rows)


def setting() -> str:
    """What all rows of the matrix have in common, in words."""
    row, seeds = read_table(TABLE)[0], matrix()[0][0].seeds
    parameters, epochs = row["parameters"], row["training_epochs"]
    return f"CIFAR-10, a net of {parameters / 1e6:.2f} million parameters, {epochs:g} epochs, {seeds} seeds"


def counted(outcome: Outcome) -> bool:
    """Whether an attack was run and left a model."""
    return outcome.attack not in (NO_ATTACK, ON_TWIN) and outcome.applies and not outcome.ruined


def of_family(method: str, family: str) -> list[Outcome]:
    found = [outcome for outcome in matrix()[1] if outcome.method == method and counted(outcome)]
    return [outcome for outcome in found if FAMILY[outcome.attack_name] == family]


def mark(attacks: Sequence[Outcome]) -> str:
    """`✓ 5/5`: found after all of them. `✗ 3/5`: lost after two."""
    survived = sum(not outcome.removed for outcome in attacks)
    return f"{'✓' if survived == len(attacks) else '✗'} {survived}/{len(attacks)}" if attacks else "not run"


def chooser() -> str:
    """The README's table: what a method reads, what it survives, what it costs."""
    steps = read("overhead_methods")["rows"]
    rows = []
    for summary in matrix()[0]:
        name = summary.method
        if name not in METHODS:  # the stack of three
            continue
        link = f"[`{name}`](hf_watermark/methods/{FOLDERS.get(name, name)}/README.md)"
        survived = [mark(of_family(name, family)) for family in MAIN]
        cost = (points(-(summary.embedding_loss or 0.0)), f"{steps[name]['window_ratio']:.2f} ×")
        rows.append([link, METHODS[name].facts.access, *survived, *cost])
    names = ["distillation", "permuting, rescaling"]
    found = table(["method", "reads", *MAIN[:3], *names, "=accuracy (points)", "=training time"], rows)
    short = read("overhead_lite0")["rows"]["function_coupled"]["whole_ratio"]
    about = (
        f"{setting()}, settings of `examples/benchmarks/matrix_cifar10.yaml`; `usp` and `csp` {BEFORE}. Training time "
        f"is of default settings in a long training; in a short one of EfficientNet-Lite0 `function_coupled` shows more triggers and took {short:.2f} ×."
    )
    return f"{found}\n\n{about}"


def marks() -> Section:
    rows = []
    for item in matrix()[0]:
        attacks = [outcome for outcome in matrix()[1] if outcome.method == item.method and counted(outcome)]
        survived = sum(not outcome.removed for outcome in attacks)
        half = "" if item.half_width is None else f"{100 * item.half_width:.1f}"
        accuracy = (percent(item.accuracy), half, percent(item.twin_accuracy), points(-(item.embedding_loss or 0.0)))
        counts = (item.seeds, item.found, item.false_alarms, len(attacks), survived)
        rows.append([plain(item.method), item.precision, *accuracy, *map(str, counts)])
    columns = "method, precision, =accuracy (%), =± (95 %), =unmarked twin (%), =difference (points), =seeds, =found"
    columns += ", =found in twins, =attacks counted, =survived"
    about = (
        f"{setting()}, `usp` and `csp` {BEFORE}; the thief has a tenth of the images, or buys answers about a fifth of them. {RULE} One card per "
        "method, with a row for each attack, is in [`model_cards/`](../../model_cards/README.md). `--reuse model_cards/results.parquet` takes over what is measured."
    )
    return Section("All methods on CIFAR-10", about, COMMAND, columns.split(", "), rows)


def families() -> Section:
    rows = [
        [plain(item.method), *(mark(of_family(item.method, family)) for family in FAMILIES)] for item in matrix()[0]
    ]
    about = f"Attacks survived of attacks counted, by family. {RULE}"
    return Section("What survives which family of attacks", about, COMMAND, ["method", *FAMILIES], rows)


def survival(method: str) -> Section:
    """One method by family, for its guide."""
    rows = []
    for family in FAMILIES:
        attacks = of_family(method, family)
        lost = [outcome for outcome in attacks if outcome.removed]
        cheapest = min(lost, key=lambda outcome: outcome.stealing_loss or 0.0, default=None)
        weakest = max((outcome.log2_p for outcome in attacks if outcome.log2_p is not None), default=None)
        loss = "" if cheapest is None or cheapest.stealing_loss is None else points(cheapest.stealing_loss)
        name = "" if cheapest is None else plain(cheapest.attack)
        counts = (str(len(attacks)), str(len(attacks) - len(lost)))
        rows.append([family, *counts, bits(weakest), name, loss])
    columns = ["family", "=attacks", "=survived", "=weakest evidence (bits)", "cheapest removal", "=it costs (points)"]
    about = f"{setting()}, the weakest one shown. {RULE}"
    return Section(f"Survival of {plain(method)}", about, COMMAND, columns, rows)


def fidelity(*methods: str) -> Section:
    """Accuracy of marked models minus that of their unmarked twins, for some methods or all."""
    found = {}
    for method in methods or METHODS:
        for row in fidelity_rows(method):
            found[tuple(row["methods"]), row["data"], row["backbone"]] = row
    rows = []
    for (names, data, backbone), row in found.items():
        half = "" if row["half_width_95"] is None else f"{row['half_width_95']:.2f}"
        number = f"{row['fidelity_points']:+.2f}".replace("-", "−")
        rows.append([" + ".join(map(plain, names)), data, backbone, number, half, str(row["seeds"])])
    columns = ["methods in the model", "data", "net", "=difference (points)", "=± (95 %)", "=seeds"]
    about = (
        "Accuracy (mean IoU on CamVid) of the marked model minus that of its unmarked twin: same seed and recipe, and the same data with the images that the key set aside. Seeds of a table may "
        "differ in settings; each results file says which."
    )
    command = "python examples/benchmarks/measured_table.py"
    return Section("What a mark costs in accuracy", about, command, columns, rows)


# An attack without a family would be left out of every table.
assert set(FAMILY) >= set(ATTACKS), set(ATTACKS) - set(FAMILY)
SECTIONS = {"matrix": marks, "families": families, "fidelity": fidelity}
