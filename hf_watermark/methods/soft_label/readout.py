"""From answers to numbers: what an answer says about the small probabilities, read without any secret."""

import numpy as np
import torch
from torch.nn import functional


# Contrasts beyond this many mean absolute contrasts of their answer are cut, so that no natural likeness outweighs many signs.
CLIP = 2.0
CENTRING = 0.5


def contrasts(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    How far each other class's log-probability lies above their mean, per answer: `[n, classes]` (float64), 0 at the row's own class.

    Nothing here depends on a key. A row is divided by its mean absolute contrast, so temperature and confidence drop out, and
    cut at [`CLIP`]. Probabilities that were not given (rounded to zero, or beyond the top k) count as half of the row's smallest given
    one. Rows that say nothing (NaN, or equal probabilities) become zero.

    Args:
        probabilities (`torch.Tensor`):
            `[n, classes]`; NaN rows are unusable answers.
        labels (`torch.Tensor`):
            `[n]`: the class of each query image.
    """
    given = probabilities.double()
    usable = given.isfinite().all(dim=1, keepdim=True)
    other = torch.ones_like(given, dtype=torch.bool).scatter_(1, labels[:, None], False)
    smallest = given.where(other & (given > 0), torch.inf).amin(dim=1, keepdim=True)
    usable &= smallest.isfinite()
    logs = torch.where(given > 0, given, smallest / 2).where(usable & other, 1.0).log()
    count = other.sum(dim=1, keepdim=True)
    centred = (logs - logs.sum(dim=1, keepdim=True) / count).where(usable & other, 0.0)
    size = centred.abs().sum(dim=1, keepdim=True) / count
    # Differences of equal probabilities are not always exactly zero.
    scaled = (centred / size.clamp_min(1e-300)).where(size > 1e-9, 0.0)
    return scaled.clamp(-CLIP, CLIP)


def unit_sums(values: torch.Tensor, labels: torch.Tensor, buckets: torch.Tensor, count: int) -> np.ndarray:
    """
    Contrasts summed over the queries of each unit: `[classes, buckets, classes]`. A unit is what one key-drawn sign decides, so it
    counts once however often it is asked.
    """
    classes = values.shape[1]
    sums = torch.zeros(classes, count, classes, dtype=torch.float64)
    sums.index_put_((labels, buckets), values, accumulate=True)
    return sums.numpy()


def centred(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Contrasts less half of their mean over the queries of the same class: what a class's images have in common is natural likeness
    ("a 4 looks like a 9") and mark in equal parts at best. More than half helps against fine-tuning and costs intact marks a third of
    their evidence.
    """
    classes = values.shape[1]
    sums = torch.zeros(classes, classes, dtype=values.dtype).index_add_(0, labels, values)
    counts = torch.bincount(labels, minlength=classes).clamp_min(1)[:, None]
    own = functional.one_hot(labels, classes).bool()
    return (values - CENTRING * (sums / counts)[labels]).masked_fill(own, 0.0)
