"""
A callback for Lightning that marks the net of a `LightningModule`, which stays as it is.

    pip install lightning
    python examples/loop_lightning.py --output runs/digits

The module optimizes automatically (Lightning's default), and its `training_step` returns the loss, or a mapping with it. The callback stands around three of its
methods while it trains. Where several processes train, give every one of them the same key (`Watermark(..., key=WatermarkKey.load(...))`).
"""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import lightning
import torch
from loops import BATCH, RATE, finish, options, pairs
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from hf_watermark import Owner, Watermark
from hf_watermark.evaluation.digits import build_digits_model


class Marking(lightning.Callback):
    """
    Trains a mark into a net.

    Args:
        watermark ([`Watermark`]):
            Of the net that the module trains: batches are pairs of images and labels, or mappings with these.
        net (`nn.Module`):
            That net, as the module calls it.
    """

    def __init__(self, watermark: Watermark, net: nn.Module):
        self.watermark, self.net = watermark, net
        self.outputs: Any = None
        self.change: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss
        self.passes = 0

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        around = [item.method for item in self.watermark.embeddings if "around_step" in item.required_calls()]
        if around and trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"`{around[0]}` runs around each batch, for which Lightning has no place while it accumulates"
            )
        self.hook = self.net.register_forward_hook(self._remember)
        for name in ("training_step", "optimizer_step", "optimizer_zero_grad"):
            setattr(module, name, getattr(self, name)(getattr(module, name)))

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            self.watermark.watch(optimizer)

    def on_fit_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.hook.remove()
        for name in ("training_step", "optimizer_step", "optimizer_zero_grad"):
            delattr(module, name)

    def _remember(self, net: nn.Module, inputs: Any, outputs: Any) -> None:
        self.outputs = outputs

    def training_step(self, original: Callable) -> Callable:
        """Adds the triggers to the batch, and the mark's loss to the module's."""

        @wraps(original)  # Lightning asks which arguments it takes
        def training_step(batch: Any, *rest: Any) -> Any:
            batch = self.watermark.extend(batch)
            result = original(batch, *rest)
            loss = result["loss"] if isinstance(result, Mapping) else result
            loss = self.change(loss + self.watermark.loss(batch, self.outputs))
            return {**result, "loss": loss} if isinstance(result, Mapping) else loss

        return training_step

    def optimizer_step(self, original: Callable) -> Callable:
        """Runs the module's forward and backward passes, which Lightning's `closure` is, inside of `around_step`."""

        def optimizer_step(epoch: int, batch_idx: int, optimizer: Any, closure: Callable) -> None:
            def step(change: Callable) -> torch.Tensor:
                self.change = change
                self.passes += 1
                return closure()

            def whole() -> torch.Tensor:
                self.passes = 0
                try:
                    return self.watermark.around_step(step)
                finally:
                    self.change, self.passes = lambda loss: loss, 0

            original(epoch, batch_idx, optimizer, whole)

        return optimizer_step

    def optimizer_zero_grad(self, original: Callable) -> Callable:
        """A second pass over the same batch adds to the gradients of the first."""

        def optimizer_zero_grad(*arguments: Any) -> None:
            if self.passes < 2:
                original(*arguments)

        return optimizer_zero_grad


class Digits(lightning.LightningModule):
    """Nothing here knows of marks."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        return functional.cross_entropy(self.net(images).logits, labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=RATE)


def main() -> None:
    given = options(__doc__)
    net, data = build_digits_model(seed=0), pairs("train")
    steps = given.epochs * len(data) // BATCH
    watermark = Watermark(net, given.methods, owner=Owner.create(), data=data, steps=steps)
    trainer = lightning.Trainer(
        max_epochs=given.epochs,
        callbacks=[Marking(watermark, net)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(net), DataLoader(watermark.data, BATCH, shuffle=True))
    print(watermark.verify())
    finish(watermark, net, given.output, net.save_pretrained)


if __name__ == "__main__":
    main()
