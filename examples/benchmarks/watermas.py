"""
WaterMAS on five small models: attacks over their range, ablations, key interception, capacity, fidelity, imperceptibility.

    python examples/benchmarks/watermas.py --data FOLDER --output runs/watermas.json
    python examples/benchmarks/watermas.py --data FOLDER --output runs/watermas.json --models resnet18 --sections attacks
    python examples/benchmarks/watermas_report.py runs/watermas.json --plot runs

The JSON is rewritten after every row; a row that is there is not measured again, so an interrupted run goes on where it stopped. Models and
their secret keys stay in `--folder`. All models are narrow, all data sets are cut (see `watermas_recipes.py`): everything with all variants took
three hours of one core, so accuracies are far from what the architectures reach, and only differences between rows say something.

Variants: `default` is the mark as it comes; `sharp` pushes harder (see `choose_watermas.py`); `frozen` replaces and freezes the same number
of weights with lambda = 0; `random` is `sharp` in a random direction instead of along the gradient; `paper` is the preset, one ascent in
each step. Bit error rate: share of the evidence bits that are read wrong; a carrier that is exactly zero, a pruned one say, has no sign and
counts as erased (`erased`).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Subset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer
from transformers.utils import logging
from watermas_recipes import RECIPES, arguments, build, load, task_metric

from hf_watermark import Owner, WatermarkKey, WaterMASConfig, WaterMASTrainer, verify
from hf_watermark.attacks import Attack, FineTune, MagnitudePrune, UniformQuantize, WeightNoise
from hf_watermark.methods.watermas.replacing import find_substitutions


SECTIONS = ("attacks", "interception", "fidelity", "capacity", "imperceptibility")
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "sharp": {"strength": 1.0, "radius": 0.25},
    "frozen": {"strength": 0.0},
    "random": {"strength": 1.0, "radius": 0.25, "direction": "random"},
    "paper": {"preset": "paper", "every": 1},
}
NOISE, PRUNE = (0.1, 0.2, 0.3, 0.5, 1.0), (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
QUANTIZE, RATES = (8, 6, 5, 4, 3, 2), (0.1, 1.0, 3.0, 10.0, 30.0)
CAPACITIES = (64, 256, 1024, 4096)
Row = dict[str, Any]


class Run:
    """One model: its data, its folder of trained models, and its rows in the JSON."""

    def __init__(self, options: argparse.Namespace, record: Row, name: str):
        self.options, self.record, self.name = options, record, name
        self.rows: Row = record["models"].setdefault(name, {"metric": RECIPES[name].metric})
        self.train, whole = load(name, options.data)
        # Attacks are judged on a part of the test data, fidelity on all of it.
        self.whole, self.test = whole, Subset(whole, range(min(options.attack_images, len(whole))))

    def row(self, section: str, label: str, measure: Callable[[], Row]) -> Row:
        """The row of an earlier run, or a measurement that is written down at once."""
        rows = self.rows.setdefault(section, {})
        if label not in rows:
            begin = time.process_time()
            rows[label] = measure()
            rows[label].setdefault("cpu_seconds", round(time.process_time() - begin, 1))
            save(self.options.output, self.record)
            print(self.name, section, label, json.dumps(rows[label]), flush=True)
        return rows[label]

    def trained(self, label: str, seed: int, config: WaterMASConfig | None) -> tuple[PreTrainedModel, Any]:
        """A model (of an earlier run, or a new one that is kept) with its key; no config means the unmarked twin."""
        folder, model = self.options.folder / f"{self.name}-{label}-{seed}", build(self.name, seed)
        if self.name != "swin":
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        keys = self.options.folder / "keys" / folder.name
        if not (folder / "weights.safetensors").exists():
            begin = time.process_time()
            args = arguments(self.name, seed, folder)
            if config is None:
                trainer = Trainer(model=model, args=args, train_dataset=self.train)
                trainer.model_accepts_loss_kwargs = False
            else:
                marking = {"watermark": config, "owner": Owner.create()}
                trainer = WaterMASTrainer(model=model, args=args, train_dataset=self.train, **marking)
                trainer.key.save(keys, overwrite=True)
            trainer.train()
            seconds = round(time.process_time() - begin, 1)
            folder.mkdir(parents=True, exist_ok=True)
            contiguous = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
            save_file(contiguous, folder / "weights.safetensors")
            self.row("training", f"{label}, seed {seed}", lambda: {"cpu_seconds": seconds})
        model.load_state_dict(load_file(folder / "weights.safetensors"))
        return model.eval(), None if config is None else WatermarkKey.load(keys)

    def measured(self, model: PreTrainedModel, key: Any, data: Any = None) -> Row:
        row: Row = {self.rows["metric"]: round(task_metric(model, data or self.test), 4)}
        if key is not None:
            evidence = verify(model, key)
            row |= {"ber": round(1 - evidence.rate, 4), "log2_p": round(evidence.log2_p, 1), "level": evidence.level}
            erased = sum(part.details["erased"] for part in evidence.parts)
            row |= {"bits": evidence.trials, "erased": round(erased / (erased + evidence.trials), 4)}
        return row


def save(path: Path, record: Row) -> None:
    path.write_text(json.dumps(record, indent=1) + "\n")


def weight_attacks() -> dict[str, Attack]:
    noise = {f"noise {level}": WeightNoise(level) for level in NOISE}
    prune = {f"prune {amount}": MagnitudePrune(amount) for amount in PRUNE}
    return noise | prune | {f"quantise {bits}": UniformQuantize(bits) for bits in QUANTIZE}


def fine_tuning(run: Run, factor: float, epochs: float = 1, images: int | None = None) -> Callable:
    recipe = RECIPES[run.name]
    attack = FineTune(
        learning_rate=factor * recipe.learning_rate, epochs=epochs, optimizer="adamw", batch_size=recipe.batch_size
    )
    data = run.train if images is None else Subset(run.train, range(images))
    return lambda model: attack(model, data)


def chosen_variants(run: Run) -> list[tuple[str, dict[str, Any]]]:
    return [(variant, VARIANTS[variant]) for variant in run.options.variants.split(",")]


def configured(run: Run, changes: dict[str, Any]) -> WaterMASConfig:
    return WaterMASConfig(**run.options.config | changes)


# --- Sections ---------------------------------------------------------------------------------------------------------


def attacks(run: Run) -> None:
    for seed in range(run.options.seeds):
        twin, _ = run.trained("twin", seed, None)
        run.row("attacks", f"twin, seed {seed}", lambda twin=twin: run.measured(twin, None))
        for variant, changes in chosen_variants(run):
            model, key = run.trained(variant, seed, configured(run, changes))
            attacked: dict[str, Callable] = {"none": lambda model: model} | weight_attacks()
            for factor in RATES:
                attacked[f"fine-tune {factor}"] = fine_tuning(run, factor, run.options.attack_epochs)
            for label, attack in attacked.items():
                run.row(
                    "attacks",
                    f"{variant}, seed {seed} | {label}",
                    lambda model=model, key=key, attack=attack: run.measured(attack(model), key),
                )


def interception(run: Run) -> None:
    """Somebody who knows the positions draws new signs for the carriers, then repairs the model by fine-tuning everything."""
    images = len(run.train)
    for seed in range(run.options.seeds):
        for variant, changes in chosen_variants(run):
            model, key = run.trained(variant, seed, configured(run, changes))
            stolen = redrawn(model, key)
            attacked: dict[str, Callable] = {
                "intact": lambda stolen, model=model: model,
                "redrawn": lambda stolen: stolen,
            }
            for share in (0.02, 0.1, 1.0):
                for passes in (1, 4):
                    # The same number of steps for every amount of data.
                    tune = fine_tuning(run, 0.3, epochs=passes * 0.25 / share, images=int(share * images))
                    attacked[f"repaired, {int(share * images)} images, {passes}/4 epoch of steps"] = tune
            for label, attack in attacked.items():
                run.row(
                    "interception",
                    f"{variant}, seed {seed} | {label}",
                    lambda stolen=stolen, key=key, attack=attack: run.measured(attack(stolen), key),
                )


def redrawn(model: PreTrainedModel, key: WatermarkKey) -> PreTrainedModel:
    import copy

    attacked, generator = copy.deepcopy(model), torch.Generator().manual_seed(7)
    [claim] = key.claims()
    for item in find_substitutions(attacked, claim):
        signs = 2 * torch.randint(2, item.symbols.shape, generator=generator) - 1
        item.weights.write(item.weights.read().abs() * signs)
    return attacked


def fidelity(run: Run) -> None:
    """Task metric on all of the test data, of marked models and twins."""
    for seed in range(run.options.seeds):
        twin, _ = run.trained("twin", seed, None)
        run.row("fidelity", f"twin, seed {seed}", lambda twin=twin: run.measured(twin, None, run.whole))
        for variant, changes in chosen_variants(run):
            marked, key = run.trained(variant, seed, configured(run, changes))
            run.row(
                "fidelity",
                f"{variant}, seed {seed}",
                lambda marked=marked, key=key: run.measured(marked, key, run.whole),
            )


def capacity(run: Run) -> None:
    for seed in range(run.options.seeds):
        for bits in CAPACITIES:
            model, key = run.trained(f"bits{bits}", seed, configured(run, {"bits": bits, "subkeys": 1}))
            attacked: dict[str, Callable] = {"none": lambda model: model, "fine-tune 1.0": fine_tuning(run, 1.0)}
            attacked |= {label: weight_attacks()[label] for label in ("noise 0.3", "prune 0.5", "quantise 4")}
            for label, attack in attacked.items():
                run.row(
                    "capacity",
                    f"{bits} bits, seed {seed} | {label}",
                    lambda model=model, key=key, attack=attack: run.measured(attack(model), key),
                )


def imperceptibility(run: Run) -> None:
    """A property-inference detector: logistic regression on histograms of every carrier tensor, cross-validated over small models."""

    def measure() -> Row:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        features, labels = [], []
        for number in tqdm(range(2 * run.options.detector_models), desc="models", disable=None):
            marked = number % 2 == 1
            file = run.options.folder / "detector" / f"{run.name}-{number}.json"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(histograms(short_model(run, 100 + number, marked))))
            features.append(json.loads(file.read_text()))
            labels.append(int(marked))
        result: Row = {"models": len(labels)}
        for strength in (0.01, 0.1, 1.0):
            detector = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
            folds = StratifiedKFold(10, shuffle=True, random_state=0)
            right = sum(cross_val_predict(detector, features, labels, cv=folds) == labels)
            result[f"accuracy, C = {strength}"] = round(float(right) / len(labels), 4)
        return result

    run.row("imperceptibility", "histogram detector", measure)


def short_model(run: Run, seed: int, marked: bool) -> PreTrainedModel:
    """One epoch of training."""
    model = build(run.name, seed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    args = arguments(run.name, seed, run.options.folder / "scratch", num_train_epochs=1)
    if marked:
        config = WaterMASConfig(**run.options.config)
        WaterMASTrainer(
            model=model, args=args, train_dataset=run.train, watermark=config, owner=Owner.create()
        ).train()
    else:
        plain = Trainer(model=model, args=args, train_dataset=run.train)
        plain.model_accepts_loss_kwargs = False
        plain.train()
    return model


def histograms(model: PreTrainedModel) -> list[float]:
    """Per matrix: its standard deviation, excess kurtosis, and the shares of weights in 40 bins of a tenth of a standard deviation."""
    values = []
    for weight in model.parameters():
        if weight.ndim < 2 or weight.numel() < 2000:
            continue
        flat = weight.detach().float().flatten()
        spread = flat.std()
        scaled = flat / spread
        counts = torch.histc(scaled.abs(), bins=40, min=0, max=4) / len(flat)
        values += [float(spread), float(scaled.pow(4).mean()) - 3, *counts.tolist()]
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/watermas"), help="models and secret keys")
    parser.add_argument("--data", type=Path, required=True, help="folder with `cifar10` and `camvid`")
    parser.add_argument("--models", default=",".join(RECIPES), help=f"some of {','.join(RECIPES)}")
    parser.add_argument("--sections", default="attacks", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"some of {','.join(VARIANTS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--attack-epochs", type=float, default=1, help="of fine-tuning on all training images")
    parser.add_argument("--attack-images", type=int, default=2000, help="test images of attacked models")
    parser.add_argument("--detector-models", type=int, default=30, help="marked ones, and as many unmarked ones")
    parser.add_argument("--config", type=json.loads, default={}, help="fields of WaterMASConfig as JSON")
    options = parser.parse_args()
    unknown = set(options.sections.split(",")) - set(SECTIONS)
    if unknown:
        parser.error(f"--sections: {', '.join(sorted(unknown))} unknown; choose of {', '.join(SECTIONS)}")
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    record = json.loads(options.output.read_text()) if options.output.exists() else {"models": {}}
    config = WaterMASConfig(**options.config).to_dict()
    if record.setdefault("config", config) != config:
        raise SystemExit(f"{options.output} holds rows of another config; choose another --output and --folder")
    for name in options.models.split(","):
        run = Run(options, record, name)
        for section in options.sections.split(","):
            globals()[section](run)


if __name__ == "__main__":
    main()
