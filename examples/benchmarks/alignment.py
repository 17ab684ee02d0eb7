"""
Alignment: what it brings back, what it costs, and whether it buys false positives.

    python examples/benchmarks/alignment.py --sections large --output runs/alignment.json
    python examples/benchmarks/alignment.py --sections trained --output runs/alignment.json
    python examples/benchmarks/alignment.py --sections nulls --output runs/alignment.json
    python examples/benchmarks/alignment.py --sections certified_nulls --output runs/alignment.json
    python examples/benchmarks/alignment.py --sections rebasin --output runs/alignment.json

* `large`: full-width backbones with random weights; both white-box marks are written into the carriers (WaterMAS by one step of its trainer,
  greedy residuals by turning the sign of every group that says the wrong bit). Bits right before, after and after alignment, and seconds.
* `trained`: a small net of every family, marked while it learns the digits, then transformed, then fine-tuned for an epoch at a tenth of the
  training rate: evidence before and after, with and without alignment. The certified verifier as well.
* `nulls`: 20 models per family, trained on the digits from other seeds, aligned to a marked one: carrier signs, bits, 50 random keys each.
* `certified_nulls`: the same of the certified method for the ResNets: 20 models, 50 random keys each.
* `rebasin`: the public weight-matching package `rebasin` on the same permuted networks, in the same process.

The JSON is rewritten after every row; a row that is there is not measured again.
"""

import argparse
import copy
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

from hf_watermark import (
    CertifiedConfig,
    CertifiedTrainer,
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    Owner,
    WatermarkKey,
    WaterMASConfig,
    WaterMASTrainer,
    verify,
    wrap_timm,
)
from hf_watermark.attacks import (
    Attack,
    DummyNeurons,
    FineTune,
    MixBottlenecks,
    MixHeads,
    NotApplicableError,
    Permute,
    Rescale,
    RotateResidual,
    StructuredPrune,
)
from hf_watermark.backbones import canonical_rows, locate
from hf_watermark.backbones.symmetry import fold, unfold
from hf_watermark.evaluation.digits import load_digits_data
from hf_watermark.evaluation.survival import accuracy
from hf_watermark.mapping import AutoVerifier
from hf_watermark.serialization import InvalidInput
from hf_watermark.suspects import Suspect
from hf_watermark.verification.alignment import Aligner, decoy_agreement
from hf_watermark.verification.alignment.sweep import Sweep


SECTIONS = ("large", "trained", "nulls", "certified_nulls", "rebasin")
LARGE = {
    "resnet50": "resnet50",
    "vit_base": "vit_base_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "convnext_tiny": "convnext_tiny",
    "mobilenetv3_large": "mobilenetv3_large_100",
}
TRANSFORMS: dict[str, list[Attack]] = {
    "permute": [Permute()],
    "everything free": [Permute(), Rescale(1.0), RotateResidual(), MixHeads(), MixBottlenecks()],
    "split units": [Permute(), DummyNeurons("split")],
    "clique units": [Permute(), DummyNeurons("clique")],
    "20 % of units removed": [Permute(), StructuredPrune(0.2)],
}
NULLS, RANDOM_KEYS = 20, 50
DIGITS_RATE = 3e-3
Row = dict[str, Any]


class Results:
    """Rows by section and label in one JSON."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.record: Row = json.loads(path.read_text()) if path.exists() else {}

    def row(self, section: str, label: str, measure: Callable[[], Row]) -> Row:
        rows = self.record.setdefault(section, {})
        if label not in rows:
            rows[label] = measure()
            self.path.write_text(json.dumps(self.record, indent=1) + "\n")
            print(section, "|", label, "|", json.dumps(rows[label]), flush=True)
        return rows[label]


def applied(model: PreTrainedModel, attacks: list[Attack], image: torch.Tensor) -> PreTrainedModel:
    """Those of the attacks that this architecture has a handle for."""
    for attack in attacks:
        try:
            model = attack(model, [{"pixel_values": image}])
        except NotApplicableError:
            continue
    return model


@torch.no_grad()
def answers(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    output = model.eval()(images)
    return output if isinstance(output, torch.Tensor) else output.logits


def share(key: WatermarkKey, suspect: Any, reference: nn.Module | None = None) -> Row:
    """Bits read right, of those that could be read."""
    try:
        evidence = verify(suspect, key, reference=reference, own_reference=True)
    except InvalidInput as error:
        return {"unreadable": str(error)[:120]}
    rate = round(evidence.matches / evidence.trials, 4) if evidence.trials else 0.0
    row: Row = {"bits_right": rate, "bits": evidence.trials, "log2_p": round(evidence.log2_p, 1)}
    if "alignment" in evidence.details:
        report = evidence.details["alignment"]
        row |= {"undone": report["undone"], "carriers_readable": report["carriers_readable"]}
    return row | {"verdict": str(evidence.verdict)}


# --- Full width -------------------------------------------------------------------------------------------------------


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, and norms as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            layer.bias.data.normal_(std=0.1, generator=generator)
        elif isinstance(layer, nn.LayerNorm) and layer.elementwise_affine:
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            if layer.bias is not None:
                layer.bias.data.normal_(std=0.1, generator=generator)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data.normal_(std=layer.weight[0].numel() ** -0.5, generator=generator)
    return model.eval()


def one_step(trainer_class: Any, model: PreTrainedModel, config: Any, image: torch.Tensor) -> WatermarkKey:
    """A key for this model, and one training step under it."""
    with tempfile.TemporaryDirectory() as folder:
        fields: Row = {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-6, "report_to": "none"}
        args = TrainingArguments(output_dir=folder, use_cpu=True, save_strategy="no", disable_tqdm=True, **fields)
        data = [{"pixel_values": image, "labels": 0}, {"pixel_values": -image, "labels": 1}]
        trainer = trainer_class(model=model, args=args, train_dataset=data, watermark=config, owner=Owner.create())
        trainer.train()
        return trainer.key


@torch.no_grad()
def turn_wrong_groups(model: PreTrainedModel, key: WatermarkKey) -> None:
    """Multiplies every group of greedy residuals that says the wrong bit by -1."""
    from hf_watermark.methods.greedy_residuals import GreedyResidualsVerifier
    from hf_watermark.methods.greedy_residuals.residuals import read_residuals, signs

    [claim] = key.claims()
    verifier = GreedyResidualsVerifier(claim)
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    rows = {carrier.role: canonical_rows(carrier, state, shapes) for carrier in verifier.carriers}
    for subkey in claim.subkeys:
        groups = verifier.members(subkey)
        phi = read_residuals(rows, groups, verifier.config.kept_fraction)
        wrong = signs(subkey, verifier.config.bits) * phi < 0
        for number in wrong.nonzero().flatten().tolist():
            carrier = verifier.carriers[int(groups.carrier[number])]
            matrix = model.get_parameter(locate(carrier.role, shapes).weight).data.reshape(carrier.rows, -1)
            matrix[int(groups.row[number]), groups.columns[number]] *= -1


def large(options: argparse.Namespace, results: Results) -> None:
    for label, architecture in LARGE.items():
        if options.models and label not in options.models.split(","):
            continue
        torch.manual_seed(0)
        model = wrap_timm(lively(timm.create_model(architecture, num_classes=10)), architecture, 10)  # type: ignore[arg-type]
        image = torch.randn(3, 224, 224)
        keys = {"watermas": one_step(WaterMASTrainer, model, WaterMASConfig(subkeys=1), image)}
        greedy = copy.deepcopy(model)
        keys["greedy_residuals"] = one_step(GreedyResidualsTrainer, greedy, GreedyResidualsConfig(subkeys=1), image)
        turn_wrong_groups(greedy, keys["greedy_residuals"])
        marked = {"watermas": model.eval(), "greedy_residuals": greedy.eval()}
        begin = time.perf_counter()
        aligners = {method: Aligner(whole, images=image[None]) for method, whole in marked.items()}
        traced = (time.perf_counter() - begin) / len(aligners)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        about = {
            "parameters": parameters,
            "spaces": len(aligners["watermas"].symmetry.spaces),
            "tracing_seconds": round(traced, 1),
        }
        results.row("large", f"{label} | reference", lambda about=about: about)
        for name, attacks in TRANSFORMS.items():

            def measure(attacks: list[Attack] = attacks) -> Row:
                row: Row = {}
                for method, whole in marked.items():
                    suspect = applied(whole, attacks, image)
                    images = torch.randn(2, 3, 224, 224)
                    wanted = answers(whole, images)
                    row["answers_moved"] = float((answers(suspect, images) - wanted).abs().max() / wanted.abs().max())
                    row[method] = {"before": share(keys[method], whole), "attacked": share(keys[method], suspect)}
                    begin = time.perf_counter()
                    aligned = aligners[method].align(suspect.state_dict())
                    row["seconds"] = round(time.perf_counter() - begin, 1)
                    module = copy.deepcopy(whole)
                    module.load_state_dict(aligned.tensors)
                    row[method]["aligned"] = share(keys[method], module)
                    row["report"] = {k: v for k, v in aligned.report.to_dict().items() if k != "warnings"}
                return row

            results.row("large", f"{label} | {name}", measure)


# --- Trained, then fine-tuned -------------------------------------------------------------------------------------------


def trained(options: argparse.Namespace, results: Results) -> None:
    train, test = load_digits_data("train"), load_digits_data("test")
    image = train[0]["pixel_values"]
    plans: dict[str, tuple[Any, Any]] = {
        "greedy_residuals": (GreedyResidualsTrainer, GreedyResidualsConfig(bits=256, subkeys=1, group_size=8)),
        "watermas": (WaterMASTrainer, WaterMASConfig(bits=256, subkeys=1)),
        "certified": (CertifiedTrainer, CertifiedConfig(subkeys=1)),
    }
    tuning = FineTune(learning_rate=DIGITS_RATE / 10, epochs=1, optimizer="adamw", batch_size=64)
    transforms = {name: TRANSFORMS[name] for name in ("permute", "everything free", "split units")}
    with tempfile.TemporaryDirectory() as scratch:
        for family, build in digit_backbones().items():
            for method, (trainer_class, config) in plans.items():
                wanted = [f"{family}, {method} | {name}" for name in transforms]
                if options.models and family not in options.models.split(","):
                    continue
                if all(label in results.record.get("trained", {}) for label in wanted):
                    continue
                model, key = marked_on_digits(trainer_class, build, config, train, scratch)
                alone = tuning(model, train)
                whole: Row = {
                    "before": share(key, model),
                    "tuned only": share(key, alone),
                    "accuracy": accuracy(model, test),
                    "accuracy, tuned": accuracy(alone, test),
                }
                for name, attacks in transforms.items():

                    def measure(attacks: list[Attack] = attacks) -> Row:
                        suspect = applied(model, attacks, image)
                        tuned = tuning(suspect, train)
                        return whole | {
                            "attacked": share(key, suspect),
                            "aligned": share(key, suspect, model),
                            "attacked, tuned": share(key, tuned),
                            "aligned, tuned": share(key, tuned, model),
                            "undone exactly, tuned": share(key, undone_exactly(model, suspect, tuned, image)),
                        }

                    results.row("trained", f"{family}, {method} | {name}", measure)


def undone_exactly(
    model: PreTrainedModel, suspect: PreTrainedModel, tuned: PreTrainedModel, image: torch.Tensor
) -> nn.Module:
    """`tuned` with the change that `suspect` shows, before it was tuned: what the training did, apart from errors of the alignment."""
    aligner = Aligner(model, images=image[None])
    run = Sweep(aligner.symmetry, aligner.anchors, fold(aligner.symmetry, suspect.state_dict()))
    run.fit()
    back = run.change.apply(aligner.symmetry, fold(aligner.symmetry, tuned.state_dict()))
    module = copy.deepcopy(model)
    module.load_state_dict(unfold(aligner.symmetry, back, aligner.state))
    return module


def marked_on_digits(
    trainer_class: Any, build: Callable[[], PreTrainedModel], config: Any, train: Any, folder: str
) -> tuple[PreTrainedModel, WatermarkKey]:
    torch.manual_seed(0)
    fields: Row = {"args": digits_arguments(0, folder), "train_dataset": train, "owner": Owner.create()}
    trainer = trainer_class(model=build(), watermark=config, **fields)
    trainer.train()
    return trainer.model.eval(), trainer.key


# --- Null models --------------------------------------------------------------------------------------------------------


def digit_backbones() -> dict[str, Callable[[], PreTrainedModel]]:
    """Small nets of every family for the digits at 32 x 32."""
    small: Row = {"num_channels": 1, "num_labels": 10}
    vit = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    swin = {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    }
    return {
        "resnet": lambda: ResNetForImageClassification(
            ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic", **small)
        ),
        "vit": lambda: ViTForImageClassification(ViTConfig(**vit, **small)),
        "swin": lambda: SwinForImageClassification(SwinConfig(**swin, **small)),
        "convnext": lambda: ConvNextForImageClassification(
            ConvNextConfig(
                patch_size=4, hidden_sizes=[16, 32], depths=[2, 2], num_stages=2, drop_path_rate=0.0, **small
            )
        ),
        "mobilenet": lambda: MobileNetV2ForImageClassification(
            MobileNetV2Config(
                depth_multiplier=0.35, image_size=32, finegrained_output=False, classifier_dropout_prob=0.0, **small
            )
        ),
    }


def digits_arguments(seed: int, folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=6,
        per_device_train_batch_size=64,
        learning_rate=DIGITS_RATE,
        lr_scheduler_type="cosine",
        seed=seed,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


def nulls(options: argparse.Namespace, results: Results) -> None:
    train = load_digits_data("train")
    with tempfile.TemporaryDirectory() as scratch:
        for family, build in digit_backbones().items():
            if options.models and family not in options.models.split(","):
                continue
            keys = {}
            references = {}
            for method, trainer_class, config in (
                ("greedy_residuals", GreedyResidualsTrainer, GreedyResidualsConfig(bits=256, subkeys=1, group_size=8)),
                ("watermas", WaterMASTrainer, WaterMASConfig(bits=256, subkeys=1)),
            ):
                references[method], keys[method] = marked_on_digits(trainer_class, build, config, train, scratch)
            for number in range(1, NULLS + 1):

                def measure(number: int = number) -> Row:
                    model = unmarked(build, number, train, scratch)
                    row: Row = {}
                    for method, reference in references.items():
                        row[method] = null_row(model, reference, keys[method], train[0]["pixel_values"])
                    return row

                results.row("nulls", f"{family} | {number}", measure)
            summarise(results, family)


def null_row(model: nn.Module, reference: nn.Module, key: WatermarkKey, image: torch.Tensor) -> Row:
    aligner = Aligner(reference, images=image[None])
    kept, whole = (aligner.align(model.state_dict(), erase=erase) for erase in (True, False))
    verifier, subkey = reader_of(key)
    module = copy.deepcopy(reference)
    module.load_state_dict(whole.tensors)
    observation = verifier.observe(Suspect.open(module), subkey)
    shapes = {name: tuple(tensor.shape) for name, tensor in aligner.state.items()}
    same = count = 0
    explained = 0.0
    for carrier in aligner.carriers:
        own, theirs = (canonical_rows(carrier, state, shapes) for state in (aligner.state, whole.tensors))
        live = theirs != 0
        same, count = same + int((own * theirs > 0)[live].sum()), count + int(live.sum())
        # Two rows that are positive in more than half of their places agree in more than half of them, whatever is in which place.
        one, two = (((row > 0) & live).sum(1) / live.sum(1).clamp_min(1) for row in (own, theirs))
        explained += float(((one * two + (1 - one) * (1 - two)) * live.sum(1)).sum())
    return {
        "readable": round(kept.report.readable, 4),
        "agreement": round(same / count, 4),
        "deviations": round((same - count / 2) / math.sqrt(count / 4), 2),
        "deviations beyond the rows' own balance": round((same - explained) / math.sqrt(count / 4), 2),
        "weights": count,
        "log2_p": round(verify(model, key, reference=reference, own_reference=True).log2_p, 2),
        "log2_p, nothing left out": round(verifier.score(observation, subkey).log2_p, 2),
        "random keys": random_keys(verifier, observation, subkey),
        "control": decoy_agreement(aligner, model.state_dict())["log2_p"],
    }


def summarise(results: Results, family: str) -> None:
    rows = [
        row for label, row in results.record["nulls"].items() if label.startswith(f"{family} |") and "all" not in label
    ]

    def measure() -> Row:
        row: Row = {"models": len(rows)}
        for method in ("greedy_residuals", "watermas"):
            mine = [item[method] for item in rows]
            row[method] = {
                "most readable": max(item["readable"] for item in mine),
                "smallest log2 p": min(item["log2_p"] for item in mine),
                "smallest log2 p, nothing left out": min(item["log2_p, nothing left out"] for item in mine),
                "most deviations": max(abs(item["deviations"]) for item in mine),
                "most deviations beyond the rows' own balance": max(
                    abs(item["deviations beyond the rows' own balance"]) for item in mine
                ),
                "mean agreement": round(sum(item["agreement"] for item in mine) / len(mine), 4),
                "random keys": {
                    level: sum(item["random keys"][level] for item in mine) for level in ("0.01", "0.001", "0.0001")
                },
                "pairs": RANDOM_KEYS * len(mine),
            }
        return row

    results.record["nulls"].pop(f"{family} | all", None)
    results.row("nulls", f"{family} | all", measure)


def certified_nulls(options: argparse.Namespace, results: Results) -> None:
    """Random keys of the certified method on other nets in the coordinates of the marked one; all channels kept, which gives nets that answer."""
    train = load_digits_data("train")
    build, image = digit_backbones()["resnet"], train[0]["pixel_values"]
    with tempfile.TemporaryDirectory() as scratch:
        reference, key = marked_on_digits(CertifiedTrainer, build, CertifiedConfig(subkeys=1), train, scratch)
        aligner = Aligner(reference, images=image[None])
        verifier, subkey = reader_of(key)
        for number in range(1, NULLS + 1):

            def measure(number: int = number) -> Row:
                module = copy.deepcopy(reference)
                module.load_state_dict(
                    aligner.align(unmarked(build, number, train, scratch).state_dict(), erase=False).tensors
                )
                observation = verifier.observe(Suspect.open(module), subkey)
                return {
                    "log2_p": round(verifier.score(observation, subkey).log2_p, 2),
                    "random keys": random_keys(verifier, observation, subkey),
                }

            results.row("certified_nulls", str(number), measure)
    rows = [row for label, row in results.record["certified_nulls"].items() if label != "all"]
    summary: Row = {"pairs": RANDOM_KEYS * len(rows), "smallest log2 p": min(row["log2_p"] for row in rows)}
    summary["random keys"] = {
        level: sum(row["random keys"][level] for row in rows) for level in rows[0]["random keys"]
    }
    results.record["certified_nulls"].pop("all", None)
    results.row("certified_nulls", "all", lambda: summary)


def reader_of(key: WatermarkKey) -> tuple[Any, Any]:
    """The verifier of a key of one method and one sub-key, and that sub-key."""
    [claim] = key.claims()
    return AutoVerifier.for_method(claim.assignment.method)(claim), claim.subkeys[0]


def unmarked(build: Callable[[], PreTrainedModel], number: int, train: Any, folder: str) -> PreTrainedModel:
    torch.manual_seed(1000 + number)
    plain = Trainer(model=build(), args=digits_arguments(number, folder), train_dataset=train)
    plain.model_accepts_loss_kwargs = False
    plain.train()
    return plain.model


def random_keys(verifier: Any, observation: Any, subkey: Any) -> dict[str, int]:
    """How many of [`RANDOM_KEYS`] decoys pass each level."""
    found = [verifier.score(observation, subkey.decoy()).log2_p for _ in range(RANDOM_KEYS)]
    return {f"{level:g}": sum(value <= math.log2(level) for value in found) for level in (1e-2, 1e-3, 1e-4)}


# --- Public packages ----------------------------------------------------------------------------------------------------


def rebasin(options: argparse.Namespace, results: Results) -> None:
    from rebasin import PermutationCoordinateDescent

    for label, architecture in {"resnet18": "resnet18", "resnet50": "resnet50", "vgg11_bn": "vgg11_bn"}.items():
        if options.models and label not in options.models.split(","):
            continue
        torch.manual_seed(0)
        reference = lively(timm.create_model(architecture, num_classes=10))
        image = torch.randn(1, 3, 64 if "vgg" not in label else 224, 64 if "vgg" not in label else 224)
        wrapped = wrap_timm(copy.deepcopy(reference), architecture, 10)
        suspect = Permute()(wrapped, [{"pixel_values": image[0]}])

        def ours() -> Row:
            begin = time.perf_counter()
            aligned = Aligner(wrapped, images=image).align(suspect.state_dict())
            seconds = time.perf_counter() - begin
            module = copy.deepcopy(wrapped)
            module.load_state_dict(aligned.tensors)
            return {
                "seconds": round(seconds, 2),
                "weights_restored": restored(module.timm_model, reference, folded=True),
            }

        def theirs() -> Row:
            moved = copy.deepcopy(suspect.timm_model)
            begin = time.perf_counter()
            PermutationCoordinateDescent(reference, moved, image, device_a="cpu", device_b="cpu").rebasin()
            return {"seconds": round(time.perf_counter() - begin, 2), "weights_restored": restored(moved, reference)}

        for name, measure in (("hf_watermark", ours), ("rebasin", theirs)):
            results.row("rebasin", f"{label} | {name}", measure)


def restored(model: nn.Module, reference: nn.Module, folded: bool = False) -> float:
    """Share of the convolution rows that are back at their place, up to the factor that folding a BatchNorm leaves."""
    same = count = 0
    for name, layer in reference.named_modules():
        if isinstance(layer, nn.Conv2d):
            one, two = (item.weight.detach().flatten(1) for item in (layer, model.get_submodule(name)))
            cosine = nn.functional.cosine_similarity(one, two, dim=1)
            same, count = same + int((cosine.abs() > 0.999).sum()), count + len(cosine)
    return round(same / count, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sections", default="large", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--models", default="", help="only these")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    results = Results(options.output)
    for section in options.sections.split(","):
        globals()[section](options, results)


if __name__ == "__main__":
    main()
