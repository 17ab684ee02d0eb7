"""
The headline figures of the methods' papers, on one pretrained net: what `pretrained.py` marked and kept.

    python examples/benchmarks/pretrained.py --cifar10 FOLDER --output runs/pretrained.json
    python examples/benchmarks/headlines.py --cifar10 FOLDER --folder runs/pretrained --output runs/headlines.json

* `usp`, `csp` ("98.68 % watermark accuracy"): the owner's detector says of single answers whether they come from the marked model. It learns from answers to
  training images of the marked model and of another seed's unmarked twin; judged on 2,000 test images, of the marked model and of its own twin.
* function-coupled ("100 % authentication"): right answers of the rules (the authors' criterion), and exact evidence, as trained; after fine-tuning with their
  code's optimizer (SGD with momentum, 2,000 images, batches of 32) at their rate, a tenth of it, and their training rate; and after 50 to 90 % of the weights were pruned and
  the rest was fine-tuned.
* certified: the share of triggers that any net within half a sigma still answers right, with 99 % confidence, and the largest radius at level B.

A row that is in the output is not measured again.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from alignment import Results, Row
from data import load_cifar10
from pretrained import Enlarged, accuracy
from transformers import AutoModelForImageClassification

from hf_watermark import WatermarkKey, verify
from hf_watermark.attacks import Attack, FineTune, MagnitudePrune
from hf_watermark.mapping import AutoVerifier
from hf_watermark.methods.certified import certify
from hf_watermark.methods.soft_label.detector import train_detector
from hf_watermark.training.triggers import without_rows


# Of the authors' code: fine-tuning, and training.
AUTHORS_RATE, TRAINING_RATE = 1e-5, 1e-2
ATTACKS: dict[str, Attack] = {
    **{
        name: FineTune(learning_rate=rate, epochs=5, batch_size=32)
        for name, rate in (
            ("fine-tuned at 1e-6, a tenth of theirs", AUTHORS_RATE / 10),
            ("fine-tuned at 1e-5, their rate", AUTHORS_RATE),
            ("fine-tuned at 1e-2, their training rate", TRAINING_RATE),
        )
    },
    **{
        f"{amount:.0%} pruned, fine-tuned": MagnitudePrune(amount, "layer", 3, TRAINING_RATE, 32)
        for amount in (0.5, 0.7, 0.9)
    },
}


def load(folder: Path) -> Any:
    return AutoModelForImageClassification.from_pretrained(folder).eval().to(memory_format=torch.channels_last)


@torch.no_grad()
def answers(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Probabilities `[n, classes]` (float64)."""
    return torch.cat([model(pixel_values=some).logits.double().softmax(dim=1) for some in images.split(100)])


def images_of(data: Any, count: int) -> torch.Tensor:
    return torch.stack([data[row]["pixel_values"] for row in range(count)])


def attribution(folder: Path, method: str, other: Path, data: Enlarged, test: Enlarged, seed: int) -> Row:
    """How often the detector is right about single answers, of which half are the marked model's."""
    key = WatermarkKey.load(folder / f"{method}-key")
    [claim] = key.claims()
    seen = images_of(without_rows(data, key.pool[f"{method}.rows"].tolist()), 4000)
    asked = images_of(test, len(test))
    marked, twin = load(folder / method), load(folder / "twin")
    template = AutoVerifier.for_method(method)(claim).template()
    detector = train_detector(template, seen, [answers(marked, seen)], [answers(load(other), seen)], seed=seed)
    found = float(detector.detects(answers(marked, asked), asked).double().mean())
    let_go = 1 - float(detector.detects(answers(twin, asked), asked).double().mean())
    return {"marked": found, "unmarked": let_go, "right": (found + let_go) / 2}


def authentication(folder: Path, attack: Attack | None, again: Enlarged, test: Enlarged) -> Row:
    """The rules' right answers, and evidence, after an attack."""
    model, key = load(folder / "function_coupled"), WatermarkKey.load(folder / "function_coupled-key")
    attacked = model if attack is None else attack(model, again)
    evidence = verify(attacked, key)
    return {"right": evidence.rate, "log2_p": evidence.log2_p, "accuracy": accuracy(attacked, test)}


def certificate(folder: Path) -> Row:
    [claim] = WatermarkKey.load(folder / "certified-key").claims()
    found = certify(claim, load(folder / "certified"))
    radii = [row.radius for curve in found.curves.values() for row in curve]
    return {
        "radius": found.radius,
        "right": found.accuracy_at(0.5),
        "relative_sigma": found.relative_sigma,
        "curve": [[radius, found.accuracy_at(radius)] for radius in radii],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="where pretrained.py kept models and keys")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--other", type=int, default=2, help="seed of the twin that the detector learns from")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    whole, tests = load_cifar10(options.cifar10, "train"), load_cifar10(options.cifar10, "test")
    data, test = Enlarged.part(whole, 0, 10_000), Enlarged.part(tests, 0, 2000)
    again = Enlarged.part(whole, 20_000, 22_000, augment=True)
    folder, other = options.folder / f"short{options.seed}", options.folder / f"short{options.other}" / "twin"
    results, label = Results(options.output), f"seed {options.seed}"
    results.row("certified", label, lambda: certificate(folder))
    for name, attack in {"as trained": None, **ATTACKS}.items():
        results.row("function_coupled", f"{name} | {label}", lambda a=attack: authentication(folder, a, again, test))
    for method in ("usp", "csp"):
        results.row(method, label, lambda m=method: attribution(folder, m, other, data, test, options.seed))


if __name__ == "__main__":
    main()
