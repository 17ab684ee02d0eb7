"""
Cost of embedding: one training step of each marking trainer against the plain `Trainer`, same model and batch.

    python examples/benchmarks/overhead.py
    python examples/benchmarks/overhead.py --model resnet18 --size 64 --batch 64 --output runs/overhead/resnet18.json
    python examples/benchmarks/overhead.py --model vit_base_patch16_224 --size 32 --batch 32 --steps 8 --warmup 1 --threads 1
    python examples/benchmarks/overhead.py --length 4000 --steps 400 --threads 1    # as in a training of 4,000 steps, with one reading of each mark
    python examples/benchmarks/overhead.py --model resnet50 --size 224 --batch 128 --bf16 --compile   # 25 M parameters, for a GPU
    python examples/benchmarks/overhead.py --model vit_base_patch16_224 --size 224 --batch 128 --bf16 --compile   # 86 M

The trainers take turns step by step in one process, each round in another order, so that whatever else the machine does hits all of
them alike; with one thread on a CPU the clock counts the process's own time only. With `--length` methods know how long the training is: they adapt to it, and
black-box marks are read ten times in it, so that a tenth of its steps is a fair sample. A step is forward, backward, gradient clipping, optimizer and `zero_grad`, as in `Trainer.train`.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
import transformers
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_watermark import (
    CertifiedConfig,
    CertifiedTrainer,
    CSPConfig,
    CSPTrainer,
    FunctionCoupledConfig,
    FunctionCoupledTrainer,
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    Owner,
    USPConfig,
    USPTrainer,
    WaterMASConfig,
    WaterMASTrainer,
    stack_trainers,
    wrap_timm,
)


LIMITS = {"greedy_residuals": 1.03, "function_coupled": 1.10, "watermas": 1.35, "watermas_paper": 2.1, "usp": 1.05}
CHOICES = [*LIMITS, "stacked", "certified", "csp"]
# Rounds over which costs are averaged before they are compared: WaterMAS ascends in every fourth step.
WINDOW = 4
CLASSES = 10


def build_model(name: str, size: int) -> PreTrainedModel:
    set_seed(0)
    if name == "small":  # 0.31 M parameters
        config = ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic", num_labels=CLASSES
        )
        return ResNetForImageClassification(config)
    # Transformers of timm are made for one size of image.
    sized: dict[str, int] = {"img_size": size} if name.startswith(("vit", "swin")) else {}
    return wrap_timm(timm.create_model(name, num_classes=CLASSES, **sized), name, CLASSES, **sized)


def build_trainers(options: argparse.Namespace, folder: str) -> dict[str, Trainer]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64 * CLASSES, 3, options.size, options.size, generator=generator)
    data = [{"pixel_values": image, "labels": number % CLASSES} for number, image in enumerate(images)]
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=options.batch,
        use_cpu=options.device == "cpu",
        bf16=options.bf16,
        torch_compile=options.compile,
        report_to="none",
        disable_tqdm=True,
    )
    greedy, coupled = GreedyResidualsConfig(), FunctionCoupledConfig()
    marking = {
        "greedy_residuals": (GreedyResidualsTrainer, greedy),
        "function_coupled": (FunctionCoupledTrainer, coupled),
        "stacked": (stack_trainers(GreedyResidualsTrainer, FunctionCoupledTrainer), [greedy, coupled]),
        "watermas": (WaterMASTrainer, WaterMASConfig()),
        "watermas_paper": (WaterMASTrainer, WaterMASConfig.paper()),
        "certified": (CertifiedTrainer, CertifiedConfig()),
        "usp": (USPTrainer, USPConfig()),
        "csp": (CSPTrainer, CSPConfig()),
    }
    marking = {name: pair for name, pair in marking.items() if name in options.methods}
    trainers = {"plain": Trainer(model=build_model(options.model, options.size), args=arguments, train_dataset=data)}
    trainers["plain"].model_accepts_loss_kwargs = False
    for name, (trainer_class, config) in marking.items():
        trainers[name] = trainer_class(
            model=build_model(options.model, options.size),
            args=arguments,
            train_dataset=data,
            watermark=config,
            owner=Owner.create(),
        )
    for trainer in trainers.values():
        trainer.current_gradient_accumulation_steps = 1  # what `train` would set
        trainer.state.max_steps = options.length
        trainer.create_optimizer()
        # Mixed precision and the compiler come from Accelerate, as in `train`.
        trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)
        trainer.model_wrapped.train()
    return trainers


def training_step(trainer: Trainer, batch: dict[str, torch.Tensor]) -> None:
    trainer.training_step(trainer.model_wrapped, dict(batch))
    nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.model.zero_grad()
    trainer.state.global_step += 1


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per step by trainer."""
    batch = {
        "pixel_values": torch.randn(options.batch, 3, options.size, options.size),
        "labels": torch.arange(options.batch) % CLASSES,
    }
    with tempfile.TemporaryDirectory() as folder:
        trainers = build_trainers(options, folder)
    on_gpu = trainers["plain"].args.device.type == "cuda"
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    names = list(trainers)
    clock = time.perf_counter if on_gpu or options.threads > 1 else time.process_time
    for turn in tqdm(range(options.warmup + options.steps), desc="rounds"):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = clock()
            training_step(trainers[name], batch)
            if on_gpu:
                torch.cuda.synchronize()
            if turn >= options.warmup:
                seconds[name].append(clock() - begin)
    return seconds


def report(seconds: dict[str, list[float]]) -> dict[str, dict]:
    """
    Medians, and ratios to the plain trainer: of the medians, the median of the ratios within a round, and the median of the ratios of
    windows of four rounds, which is the cost of a method that does more in some steps than in others; and of all steps together, with the rare readings of a mark.
    """

    def windows(values: list[float]) -> list[float]:
        return [sum(values[first : first + WINDOW]) for first in range(0, len(values) - WINDOW + 1, WINDOW)]

    plain = seconds["plain"]
    rows = {}
    for name, own in seconds.items():
        rows[name] = {"median_ms": round(1000 * statistics.median(own), 3), "steps": len(own)}
        if name != "plain":
            ratio = statistics.median(own) / statistics.median(plain)
            paired = statistics.median(mine / theirs for mine, theirs in zip(own, plain, strict=True))
            pairs = zip(windows(own), windows(plain), strict=True)
            window = statistics.median(mine / theirs for mine, theirs in pairs)
            rows[name] |= {"ratio": round(ratio, 4), "paired_ratio": round(paired, 4)}
            rows[name] |= {"window_ratio": round(window, 4), "limit": LIMITS.get(name)}
            rows[name]["whole_ratio"] = round(sum(own) / sum(plain), 4)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="`small` (0.3 M parameters) or a timm architecture")
    parser.add_argument("--methods", nargs="+", choices=CHOICES, default=CHOICES, help="plain is always among them")
    parser.add_argument("--size", type=int, default=32, help="image height and width")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument(
        "--length", type=int, default=0, help="steps of the training that the measured ones are a part of"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true", help="with torch.compile; give a longer --warmup")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = {
        "options": {name: str(value) for name, value in vars(options).items() if not isinstance(value, Path)},
        "machine": platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rows": report(measure(options)),
    }
    text = json.dumps(record, indent=1)
    print(text)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text)


if __name__ == "__main__":
    main()
