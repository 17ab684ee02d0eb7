"""
WaterMAS on five small models: attacks over their range, ablations, key interception, capacity, fidelity, imperceptibility.

    python examples/benchmarks/watermas.py --data ../shared/data --output runs/watermas.json
    python examples/benchmarks/watermas.py --data ../shared/data --output runs/watermas.json --models resnet18 --sections attacks
    python examples/benchmarks/watermas.py --output runs/watermas.json --plot runs

The JSON is rewritten after every row; a row that is there is not measured again, so an interrupted run goes on where it stopped. Models and
their secret keys stay in `--folder`. All models are narrow, all data sets are cut (see `watermas_recipes.py`): the whole run is meant for about
half an hour of one core, so accuracies are far from what the architectures reach, and only differences between rows say something.

Variants: `sharpened` is the mark as it comes, `strong` has lambda = 0.5 instead of 0.2; `frozen` replaces and freezes the same number of weights
with lambda = 0; `random` is `strong` in a random direction of the same length instead of along the gradient; `paper` ascends in each step
instead of every fourth; `dense` replaces 16,384 weights and is as strong as can be here. Bit error rate: share
of the evidence bits that are read wrong; a carrier that is exactly zero, a pruned one say, has no sign and counts as erased (`erased`).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from scipy import stats
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
    "sharpened": {},
    "strong": {"strength": 0.5},
    "frozen": {"strength": 0.0},
    "random": {"strength": 0.5, "direction": "random"},
    "paper": {"every": 1, "preset": "paper"},
    "dense": {"bits": 4096, "subkeys": 4, "strength": 0.5, "every": 1},
    "dense-frozen": {"bits": 4096, "subkeys": 4, "strength": 0.0},
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
    if recipe.metric == "mIoU":  # the attacks collate labels as one number per image
        return lambda model: fine_tune_scenes(run, model, factor, epochs, images)
    data = run.train if images is None else Subset(run.train, range(images))
    return lambda model: attack(model, data)


def fine_tune_scenes(run: Run, model: Any, factor: float, epochs: float, images: int | None) -> Any:
    import copy

    attacked, recipe = copy.deepcopy(model), RECIPES[run.name]
    changes = {"num_train_epochs": epochs, "learning_rate": factor * recipe.learning_rate, "warmup_steps": 0}
    args = arguments(run.name, 1, run.options.folder / "scratch", lr_scheduler_type="constant", **changes)
    data = run.train if images is None else Subset(run.train, range(images))
    trainer = Trainer(model=attacked, args=args, train_dataset=data)
    trainer.model_accepts_loss_kwargs = False
    trainer.train()
    return attacked.eval()


def chosen_variants(run: Run) -> list[tuple[str, dict[str, Any]]]:
    return [(variant, VARIANTS[variant]) for variant in run.options.variants.split(",")]


# --- Sections ---------------------------------------------------------------------------------------------------------


def attacks(run: Run) -> None:
    twin, _ = run.trained("twin", 0, None)
    run.row("attacks", "twin", lambda: run.measured(twin, None))
    for variant, changes in chosen_variants(run):
        model, key = run.trained(variant, 0, WaterMASConfig(**run.options.config | changes))
        run.row("attacks", f"{variant} | none", lambda model=model, key=key: run.measured(model, key))
        for label, attack in weight_attacks().items():
            run.row(
                "attacks",
                f"{variant} | {label}",
                lambda model=model, key=key, attack=attack: run.measured(attack(model), key),
            )
        for factor in RATES:
            tune = fine_tuning(run, factor, run.options.attack_epochs)
            run.row(
                "attacks",
                f"{variant} | fine-tune {factor}",
                lambda model=model, key=key, tune=tune: run.measured(tune(model), key),
            )


def interception(run: Run) -> None:
    """Somebody who knows the positions draws new signs for the carriers, then repairs the model by fine-tuning everything."""
    images = len(run.train)
    for variant, changes in chosen_variants(run):
        model, key = run.trained(variant, 0, WaterMASConfig(**run.options.config | changes))
        stolen = redrawn(model, key)
        run.row("interception", f"{variant} | intact", lambda model=model, key=key: run.measured(model, key))
        run.row("interception", f"{variant} | redrawn", lambda stolen=stolen, key=key: run.measured(stolen, key))
        for share in (0.02, 0.1, 1.0):
            for passes in (1, 4):
                # The same number of steps for every amount of data.
                tune = fine_tuning(run, 0.3, epochs=passes * 0.25 / share, images=int(share * images))
                run.row(
                    "interception",
                    f"{variant} | repaired, {int(share * images)} images, {passes}/4 epoch of steps",
                    lambda stolen=stolen, key=key, tune=tune: run.measured(tune(stolen), key),
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
    """Task metric on all of the test data, marked minus twin, for both strengths."""
    metric, seeds = run.rows["metric"], range(run.options.seeds)
    for seed in seeds:
        twin, _ = run.trained("twin", seed, None)
        run.row("fidelity", f"twin, seed {seed}", lambda twin=twin: run.measured(twin, None, run.whole))
    for variant in ("sharpened", "strong"):
        gaps = []
        for seed in seeds:
            config = WaterMASConfig(**run.options.config | VARIANTS[variant])
            marked, key = run.trained(variant, seed, config)
            row = run.row(
                "fidelity",
                f"{variant}, seed {seed}",
                lambda marked=marked, key=key: run.measured(marked, key, run.whole),
            )
            gaps.append(row[metric] - run.rows["fidelity"][f"twin, seed {seed}"][metric])
        if len(gaps) > 1:
            half = float(stats.t.ppf(0.975, len(gaps) - 1) * stats.sem(gaps))
            mean = {"mean": round(sum(gaps) / len(gaps), 4), "half_width_95": round(half, 4)}
            run.row("fidelity", f"{variant} minus twin, {len(gaps)} seeds", lambda mean=mean: mean)


def capacity(run: Run) -> None:
    for bits in CAPACITIES:
        config = WaterMASConfig(**run.options.config | {"bits": bits, "subkeys": 1})
        model, key = run.trained(f"bits{bits}", 0, config)
        chosen = {
            name: attack
            for name, attack in weight_attacks().items()
            if name in ("noise 0.3", "prune 0.5", "quantise 4")
        }
        run.row("capacity", f"{bits} | none", lambda model=model, key=key: run.measured(model, key))
        for label, attack in chosen.items():
            run.row(
                "capacity",
                f"{bits} | {label}",
                lambda model=model, key=key, attack=attack: run.measured(attack(model), key),
            )
        tune = fine_tuning(run, 1.0)
        run.row(
            "capacity",
            f"{bits} | fine-tune 1.0",
            lambda model=model, key=key, tune=tune: run.measured(tune(model), key),
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


# --- Plot -------------------------------------------------------------------------------------------------------------


def plot(record: Row, folder: Path) -> None:
    """One picture per model: task metric and bit error rate against the strength of each attack."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {"noise": NOISE, "prune": PRUNE, "quantise": QUANTIZE, "fine-tune": RATES}
    colours = {
        "sharpened": "#0b6e99",
        "strong": "#be185d",
        "frozen": "#c2410c",
        "random": "#4d7c0f",
        "paper": "#7c3aed",
    }
    for name, model in record["models"].items():
        rows, metric = model.get("attacks", {}), model["metric"]
        figure, axes = pyplot.subplots(2, 4, figsize=(14, 5.6), sharex="col", sharey="row", layout="constrained")
        for column, (attack, levels) in enumerate(panels.items()):
            for variant, colour in colours.items():
                if f"{variant} | none" not in rows:
                    continue
                known = [level for level in levels if f"{variant} | {attack} {level}" in rows]
                places = [levels.index(level) for level in known]
                for line, field in enumerate((metric, "ber")):
                    values = [rows[f"{variant} | {attack} {level}"][field] for level in known]
                    axes[line, column].plot(places, values, color=colour, marker="o", label=variant)
            axes[0, column].set_title(attack)
            axes[1, column].set_xticks(range(len(levels)), [str(level) for level in levels])
            if "twin" in rows:
                axes[0, column].axhline(rows["twin"][metric], color="#9aa5b1", linestyle="--", label="unmarked")
            axes[1, column].axhline(0.3, color="#9aa5b1", linestyle=":", label="512 bits still reach level B")
        axes[0, 0].set_ylabel(metric)
        axes[1, 0].set_ylabel("bit error rate")
        axes[1, 0].set_ylim(-0.02, 1.02)
        axes[0, 0].legend(frameon=False, fontsize=8)
        axes[1, 0].legend(frameon=False, fontsize=8)
        labels = ("noise / layer's std", "share pruned", "bits per weight", "rate / training rate")
        for column, label in enumerate(labels):
            axes[1, column].set_xlabel(label)
        figure.suptitle(name)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"watermas_{name}.png", dpi=110)
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/watermas"), help="models and secret keys")
    parser.add_argument("--data", type=Path, help="folder with `cifar10` and `camvid`")
    parser.add_argument("--models", default=",".join(RECIPES), help=f"some of {','.join(RECIPES)}")
    parser.add_argument("--sections", default="attacks", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--variants", default="sharpened,strong,frozen,random", help=f"some of {','.join(VARIANTS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--attack-epochs", type=float, default=1, help="of fine-tuning on all training images")
    parser.add_argument("--attack-images", type=int, default=2000, help="test images of attacked models")
    parser.add_argument("--detector-models", type=int, default=30, help="marked ones, and as many unmarked ones")
    parser.add_argument("--config", type=json.loads, default={}, help="fields of WaterMASConfig as JSON")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="only draw the pictures of a JSON that is there")
    options = parser.parse_args()
    if options.plot:
        return plot(json.loads(options.output.read_text()), options.plot)
    if options.data is None:
        parser.error("--data is needed for a run")
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
