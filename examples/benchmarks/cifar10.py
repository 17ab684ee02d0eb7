"""
Fidelity and survival on CIFAR-10 with a net of 0.31 M parameters: twin and marked model per seed, then every attack.

    python examples/benchmarks/cifar10.py --data FOLDER --seed 0 --output runs/cifar10/seed0.json

One process per seed; the JSON is rewritten after every row, and holds the options of every attack.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
import transformers
from recipes import LEARNING_RATES, arguments, build_model, load_data, train_twin

from hf_watermark import AutoTrainer, Owner, stack_trainers
from hf_watermark.attacks import standard_battery
from hf_watermark.evaluation import accuracy, survival_row, survival_table
from hf_watermark.mapping import METHODS


# As the published rows were measured: a share of triggers whatever the length of the run, ten questions a rule, and no feedback.
FIELDS = {"function_coupled": {"trigger_ratio": 1 / 16, "images_per_rule": 10, "target_log2_p": 0.0}}
FIELDS |= {method: {"target_log2_p": 0.0} for method in ("certified", "usp", "csp")}
FIELDS["certified"]["noise"] = "relative"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--images", type=int, default=50_000, help="training images")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["greedy_residuals", "function_coupled"],
        choices=list(METHODS),
        help="marks to stack",
    )
    parser.add_argument("--attack-images", type=int, default=10_000, help="training images the attacker has")
    parser.add_argument("--attack-epochs", type=float, default=5)
    parser.add_argument("--distill-epochs", type=float, default=4, help="over all training images")
    parser.add_argument(
        "--attacks", nargs="*", help="labels of the standard battery; all by default, none for fidelity only"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train, test = load_data("cifar10", options.data, options.images)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    folder = options.output.with_suffix("")
    record = {
        "options": {name: value for name, value in vars(options).items() if not isinstance(value, Path)},
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": options.threads},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rows": [],
    }

    def save() -> None:
        options.output.write_text(json.dumps(record, indent=1))

    begin = time.perf_counter()
    twin = train_twin("cifar10", options.seed, options.epochs, folder, train)
    record["twin"] = {"accuracy": accuracy(twin.model, test), "seconds": round(time.perf_counter() - begin, 1)}
    record["parameters"] = twin.model.num_parameters()
    save()

    begin = time.perf_counter()
    marked = stack_trainers(*map(AutoTrainer.for_method, options.methods))(
        model=build_model("cifar10", options.seed),
        args=arguments("cifar10", options.seed, options.epochs, folder),
        train_dataset=train,
        watermark=[METHODS[method].load("Config")(**FIELDS.get(method, {})) for method in options.methods],
        owner=Owner.create(),
    )
    marked.train()
    record["marked"] = survival_row("none", marked.model, marked.key, test, twin.model)
    record["marked"]["seconds"] = round(time.perf_counter() - begin, 1)
    record["marked"]["subkeys"] = {item.method: len(item.subkeys) for item in marked.key.assignments}
    record["fidelity"] = round(record["marked"]["accuracy"] - record["twin"]["accuracy"], 4)
    record["unmarked_twin_verified"] = survival_row("unmarked twin", twin.model, marked.key, test, twin.model)
    save()

    print(json.dumps({name: record[name] for name in ("twin", "marked", "fidelity")}, indent=1))
    if options.attacks == []:
        return

    def add(row: dict) -> None:
        record["rows"].append(row)
        save()

    battery = standard_battery(
        LEARNING_RATES["cifar10"],
        epochs=options.attack_epochs,
        distill_epochs=options.distill_epochs,
        optimizer="adamw",
        seed=options.seed,
    )
    if options.attacks:
        battery = {label: battery[label] for label in options.attacks}
    distillation = {label: attack for label, attack in battery.items() if label.startswith("distill")}
    others = {label: attack for label, attack in battery.items() if label not in distillation}
    survival_table(marked.model, marked.key, others, train.first(options.attack_images), test, add)
    survival_table(marked.model, marked.key, distillation, train, test, add)


if __name__ == "__main__":
    main()
