"""
A loop in the style of timm's `train.py` that marks the net which it trains: timm's optimizers and schedules, an average of the weights, clipped
gradients, accumulation, mixup.

    python examples/loop_timm.py --output runs/digits
    python examples/loop_timm.py --output runs/digits --mixup 0.2

Methods that read the labels (`function_coupled`, `usp`, `csp`) need them as integers, so without mixup.
"""

from collections.abc import Callable
from typing import Any

import timm
import torch
from loops import BATCH, RATE, finish, options, pairs
from safetensors.torch import save_model
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn
from torch.utils.data import DataLoader

from hf_watermark import Owner, Watermark


def train_one_epoch(
    epoch: int,
    model: nn.Module,
    watermark: Watermark,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[..., torch.Tensor],
    lr_scheduler: Any = None,
    model_ema: ModelEmaV3 | None = None,
    mixup_fn: Mixup | None = None,
    clip_grad: float | None = None,
    accum_steps: int = 1,
) -> None:
    model.train()
    updates = epoch * (len(loader) // accum_steps)
    optimizer.zero_grad()
    for number, batch in enumerate(loader):
        if mixup_fn is not None:
            batch = mixup_fn(*batch)

        def _step(change, batch=batch):
            input, target = watermark.extend(batch)
            output = model(input)
            loss = change(loss_fn(output, target) + watermark.loss((input, target), output))
            (loss / accum_steps).backward()
            return loss.detach()

        watermark.around_step(_step)
        if (number + 1) % accum_steps:
            continue
        if clip_grad is not None:
            dispatch_clip_grad(model.parameters(), value=clip_grad, mode="norm")
        optimizer.step()
        optimizer.zero_grad()
        updates += 1
        if model_ema is not None:
            model_ema.update(model, step=updates)
        if lr_scheduler is not None:
            lr_scheduler.step_update(num_updates=updates)


def main() -> None:
    given = options(__doc__, mixup={"type": float, "default": 0.0}, ema={"type": float, "default": 0.9})
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", in_chans=1, num_classes=10, channels=(32, 64, 64, 128), stem_width=16)
    data = pairs("train")
    steps = given.epochs * len(data) // BATCH
    watermark = Watermark(model, given.methods, owner=Owner.create(), data=data, steps=steps)
    loader = DataLoader(watermark.data, BATCH, shuffle=True, drop_last=True)
    optimizer = watermark.watch(create_optimizer_v2(model, opt="adamw", lr=RATE, weight_decay=0.05))
    lr_scheduler, epochs = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=given.epochs, step_on_epochs=False, updates_per_epoch=len(loader)
    )
    model_ema = ModelEmaV3(model, decay=given.ema)
    mixup_fn = Mixup(mixup_alpha=given.mixup, num_classes=10) if given.mixup else None
    loss_fn = SoftTargetCrossEntropy() if mixup_fn else nn.CrossEntropyLoss()
    for epoch in range(epochs):
        train_one_epoch(
            epoch, model, watermark, loader, optimizer, loss_fn, lr_scheduler, model_ema, mixup_fn, clip_grad=5.0
        )
    print(watermark.verify(), watermark.verify(model_ema.module), sep="\n")
    finish(
        watermark,
        model_ema.module,
        given.output,
        lambda folder: save_model(model_ema.module, str(folder / "model.safetensors")),
    )


if __name__ == "__main__":
    main()
