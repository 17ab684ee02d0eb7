"""The released training schedule, for comparison with the amortised one: 21 noise levels of 100 draws before each epoch."""

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional


if TYPE_CHECKING:
    from .embedding import CertifiedEmbedding

LEVELS = 20
DRAWS = 100
BATCH = 64
WARMUP_EPOCHS = 5


def released_epoch(embedding: "CertifiedEmbedding", optimizer: Any) -> None:
    """
    Bansal et al., Algorithm 1 as released: after the warm-up epochs, before each clean epoch, for every batch of 64 triggers and every
    level `j / 20 * sigma`, j = 0 ... 20, one optimizer step on the mean gradient of 100 noise draws, divided by 21.

    Deviation: BatchNorm statistics stay as they are in these passes; the release let 2,100 passes over triggers alone rewrite them.
    """
    device = next(embedding.model.parameters()).device
    for number, chosen in enumerate(torch.arange(len(embedding.triggers)).split(BATCH)):
        images, labels = embedding.triggers[chosen].to(device), embedding.labels[chosen].to(device)
        for level in range(LEVELS + 1):
            optimizer.zero_grad()
            for draw in range(DRAWS):
                seed = embedding.moment.seed(embedding.draws, f"released/{number}/{level}/{draw}".encode())
                loss = functional.cross_entropy(embedding.noisy_logits(images, level / LEVELS, seed), labels)
                (loss / (DRAWS * (LEVELS + 1))).backward()
            optimizer.step()
    optimizer.zero_grad()
