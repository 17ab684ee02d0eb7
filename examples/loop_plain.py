"""
A plain PyTorch loop that marks the model which it trains.

    python examples/loop_plain.py --output runs/digits
    python examples/loop_plain.py --output runs/digits --methods greedy_residuals function_coupled --epochs 10

It calls all that any method needs. For `greedy_residuals` alone, `loss = loss + watermark.loss()` in your own loop is enough.
"""

import torch
from loops import BATCH, RATE, finish, options
from torch import nn
from torch.utils.data import DataLoader

from hf_watermark import Owner, Watermark
from hf_watermark.evaluation.digits import build_digits_model, load_digits_data


def train(
    model: nn.Module, watermark: Watermark, optimizer: torch.optim.Optimizer, loader: DataLoader, epochs: int
) -> None:
    watermark.watch(optimizer)
    for _ in range(epochs):
        model.train()
        for batch in loader:

            def step(change, batch=batch):
                batch = watermark.extend(batch)
                outputs = model(**batch)
                loss = change(outputs.loss + watermark.loss(batch, outputs))
                loss.backward()
                return loss.detach()

            optimizer.zero_grad()
            watermark.around_step(step)
            optimizer.step()


def main() -> None:
    given = options(__doc__)
    model, data = build_digits_model(seed=0), load_digits_data("train")
    steps = given.epochs * len(data) // BATCH
    watermark = Watermark(model, given.methods, owner=Owner.create(), data=data, steps=steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    train(model, watermark, optimizer, DataLoader(watermark.data, BATCH, shuffle=True), given.epochs)
    print(watermark.verify())
    finish(watermark, model, given.output, model.save_pretrained)


if __name__ == "__main__":
    main()
