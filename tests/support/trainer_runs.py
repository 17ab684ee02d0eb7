"""Training runs that the tests of this folder compare: imported for runs in one process, and run by torchrun for two."""

import json
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_watermark import (
    FunctionCoupledConfig,
    FunctionCoupledTrainer,
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    Owner,
    WatermarkKey,
    stack_trainers,
    wrap_timm,
)


CLASSES = 10
GREEDY = GreedyResidualsConfig(bits=128, subkeys=2, group_size=16, strength=0.1)
COUPLED = FunctionCoupledConfig(pool_per_class=4, images_per_rule=2, trigger_ratio=0.5)
NETS = ("resnet", "vit", "timm")
ACCUMULATION = (1, 4)
PRECISION = ("fp32", "bf16")
MASKINGS = ("forward", "fc_v1", "fc_v2")
Stacked = stack_trainers(GreedyResidualsTrainer, FunctionCoupledTrainer)


def build(net: str, classes: int = CLASSES) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel
    if net == "vit":
        sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "intermediate_size": 128}
        model = ViTForImageClassification(
            ViTConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, num_labels=classes)
        )
    elif net == "resnet":
        config = ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=classes
        )
        model = ResNetForImageClassification(config)
    else:
        channels = {"channels": (16, 16, 16, 32), "stem_width": 16}
        model = wrap_timm(
            timm.create_model("resnet10t", num_classes=classes, **channels), "resnet10t", classes, **channels
        )
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):  # both signs, and none of timm's zeros
            layer.weight.data.uniform_(0.5, 1.5).mul_(torch.randint(0, 2, layer.weight.shape) * 2 - 1)
    return model


def images(count: int, classes: int = CLASSES, size: int = 16) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randn(classes, 3, size, size, generator=generator)
    noise = 0.3 * torch.randn(count, 3, size, size, generator=generator)
    return [{"pixel_values": patterns[n % classes] + noise[n], "labels": n % classes} for n in range(count)]


def micro_batch(net: str) -> list[dict[str, Any]]:
    # In bf16 on CPU, torch returns garbage as gradient of a 3x3 kernel over 1x1 pixels, where timm's resnet would end at 16 pixels.
    return images(4, size=64 if net == "timm" else 16)


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    fields = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "seed": 0}
    fields |= {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_strategy": "no"}
    return TrainingArguments(str(folder), **fields | changes)


class FirstGradients(TrainerCallback):
    """What the optimizer sees at its first step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.seen = {name: weight.grad.clone() for name, weight in model.named_parameters()}


@dataclass
class Run:
    gradients: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    verdict: str
    matches: int


def train_greedy(net: str, accumulation: int, precision: str, key: WatermarkKey, folder: Path) -> Run:
    """All micro-batches are the same four images, so one optimizer step is the same step for any accumulation and process count."""
    callback = FirstGradients()
    trainer = GreedyResidualsTrainer(
        model=build(net),
        args=arguments(
            folder,
            max_steps=12,
            gradient_accumulation_steps=accumulation,
            bf16=precision == "bf16",
            train_sampling_strategy="sequential",
            max_grad_norm=0,
        ),
        train_dataset=micro_batch(net) * 96,
        watermark=GREEDY,
        key=key,
        callbacks=[callback],
    )
    trainer.train()
    return Run(callback.seen, parameters(trainer.model), str(trainer.evidence.verdict), trainer.evidence.matches)


def train_stacked(masking: str, folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Parameters and precommit of a run with both methods under a fresh key."""
    trainer = Stacked(
        model=build("resnet"),
        args=arguments(folder, max_steps=2, gradient_accumulation_steps=2),
        train_dataset=images(250),
        watermark=[GREEDY, FunctionCoupledConfig(**vars(COUPLED) | {"masking": masking})],
        owner=Owner.create(),
    )
    trainer.train()
    return parameters(trainer.model), trainer.key.precommit.hex()


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def main(folder: Path) -> None:
    """One process of two: writes what it saw, for every net, accumulation and precision, and for stacked methods."""
    torch.set_num_threads(1)
    facts: dict[str, Any] = {}
    rank = TrainingArguments(str(folder / "out"), use_cpu=True, report_to="none").process_index
    for net, accumulation, precision in product(NETS, ACCUMULATION, PRECISION):
        name = f"{net}-{accumulation}-{precision}"
        run = train_greedy(net, accumulation, precision, WatermarkKey.load(folder / f"key-{net}"), folder / "out")
        tensors = {f"gradient.{key}": value for key, value in run.gradients.items()}
        tensors |= {f"weight.{key}": value for key, value in run.weights.items()}
        save_file(tensors, folder / f"{name}-rank{rank}.safetensors")
        facts[name] = {"verdict": run.verdict, "matches": run.matches}
    for masking in MASKINGS:
        weights, precommit = train_stacked(masking, folder / "out")
        save_file(weights, folder / f"{masking}-rank{rank}.safetensors")
        facts[masking] = {"precommit": precommit}
    (folder / f"facts-rank{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
