"""
A loop on Accelerate that marks the model which it trains: on one process or several, with accumulation and mixed precision.

    python examples/loop_accelerate.py --output runs/digits --accumulation 2
    accelerate launch --num_processes 2 examples/loop_accelerate.py --output runs/digits --precision bf16

The `Watermark` is made behind the `Accelerator`, so that the first process can draw the key for all, and before `prepare`, which wraps or shards the
model. FSDP2 is asked for as always (`accelerate launch --use_fsdp --fsdp_version 2`).
"""

import torch
from accelerate import Accelerator
from loops import BATCH, RATE, finish, options
from torch import nn
from torch.utils.data import DataLoader

from hf_watermark import Owner, Watermark
from hf_watermark.evaluation.digits import build_digits_model, load_digits_data


def train(
    accelerator: Accelerator,
    model: nn.Module,
    watermark: Watermark,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    epochs: int,
) -> None:
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    watermark.watch(optimizer)
    for _ in range(epochs):
        model.train()
        for batch in loader:

            def step(change, batch=batch):
                batch = watermark.extend(batch)
                outputs = model(**batch)
                loss = change(outputs.loss + watermark.loss(batch, outputs))
                accelerator.backward(loss)
                return loss.detach()

            with accelerator.accumulate(model):
                watermark.around_step(step)
                optimizer.step()
                optimizer.zero_grad()


def main() -> None:
    precision = {"default": "no", "choices": ["no", "bf16", "fp16"]}
    given = options(__doc__, accumulation={"type": int, "default": 1}, precision=precision)
    accelerator = Accelerator(mixed_precision=given.precision, gradient_accumulation_steps=given.accumulation)
    model, data = build_digits_model(seed=0), load_digits_data("train")
    steps = given.epochs * len(data) // (BATCH * given.accumulation * accelerator.num_processes)
    watermark = Watermark(model, given.methods, owner=Owner.create(), data=data, steps=steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    train(accelerator, model, watermark, optimizer, DataLoader(watermark.data, BATCH, shuffle=True), given.epochs)
    evidence = watermark.verify()  # in every process
    whole = watermark.whole_model()
    if accelerator.is_main_process:
        print(evidence)
        finish(watermark, whole, given.output, whole.save_pretrained)
    accelerator.end_training()


if __name__ == "__main__":
    main()
