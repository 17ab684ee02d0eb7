"""
What an unmarked network would answer: the likenesses of classes that every network of the task has, so that a verifier can take them
out. A small network on thumbnails is enough, since the features of the mark are coarse too. It knows nothing of any key.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm

from ...training.triggers import read_row, undisturbed_random_state
from ...training.triggers.pool import Collator
from .features import patch_means


SIDE = 8
MOST_IMAGES = 10_000
EPOCHS, BATCH, RATE = 15, 250, 4e-3


def reference_answers(
    dataset: Any, collator: Collator, left_out: set[int], images: torch.Tensor, classes: int
) -> torch.Tensor:
    """
    Log-probabilities `[n, classes]` (half) of a network of two layers on 8 x 8 thumbnails, trained for seconds.

    Args:
        dataset:
            Labelled images; at most 10,000 are taken, evenly spread.
        left_out (`set[int]`):
            Rows that must not be taken: those of `images`.
        images (`torch.Tensor`):
            `[n, channels, height, width]`: the queries.
    """
    rows = [row for row in range(0, len(dataset), max(1, len(dataset) // MOST_IMAGES)) if row not in left_out]
    seen, labels = [], []
    with undisturbed_random_state():
        for row in tqdm(rows, desc="reference", leave=False, delay=2):
            image, label = read_row(collator([dataset[row]]))
            seen.append(patch_means(image[None], SIDE)[0])
            labels.append(label)
    if not seen:
        return torch.zeros(len(images), classes).log_softmax(dim=1).half()
    inputs, asked = torch.stack(seen), patch_means(images, SIDE)
    centre, size = inputs.mean(dim=0), inputs.std(dim=0, correction=0).clamp_min(1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _fitted((inputs - centre) / size, torch.tensor(labels), classes)
    with torch.no_grad():
        return network((asked - centre) / size).log_softmax(dim=1).half()


def _fitted(inputs: torch.Tensor, labels: torch.Tensor, classes: int) -> nn.Module:
    network = nn.Sequential(nn.Linear(inputs.shape[1], 256), nn.GELU(), nn.Dropout(0.3), nn.Linear(256, classes))
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    batches = -(-len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * batches)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(inputs)).chunk(batches):
            optimizer.zero_grad()
            functional.cross_entropy(network(inputs[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()
