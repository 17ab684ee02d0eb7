"""From answers to numbers: what an answer says about the small probabilities, read without any secret."""

import numpy as np
import torch


# Contrasts beyond this many mean absolute contrasts of their answer are cut, so that no natural likeness outweighs many signs.
CLIP = 2.0
# Means over a class count as if so many images without any contrast belonged to it: of few images they are the mark as much as likeness.
PRIOR = 4


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


def unit_sums(values: torch.Tensor, labels: torch.Tensor, features: torch.Tensor) -> np.ndarray:
    """
    How the contrasts of each class go with each feature: `[features, classes]`, one number per key-drawn sign, so that a sign counts once
    however many images are asked. Contrasts are taken less their mean over the images with the same top class, shrunk for small
    classes: what these have in common is natural likeness ("a 4 looks like a 9").

    Args:
        values (`torch.Tensor`):
            `[n, classes]`: contrasts.
        labels (`torch.Tensor`):
            `[n]`: top classes.
        features (`torch.Tensor`):
            `[n, features]` of the images asked.
    """
    # A row for each class that came up, not for each that there is: a square of all of them would not fit into memory.
    seen, place = labels.unique(return_inverse=True)
    sums = torch.zeros(len(seen), values.shape[1], dtype=values.dtype).index_add_(0, place, values)
    counts = torch.bincount(place, minlength=len(seen))[:, None]
    return (features.to(values.dtype).T @ (values - (sums / (counts + PRIOR))[place])).numpy()


def without(sums: np.ndarray, natural: np.ndarray) -> np.ndarray:
    """`sums` less the multiple of `natural` that they resemble most: likenesses that networks of the task share, whatever their key."""
    size = float((natural**2).sum())
    return sums - float((sums * natural).sum()) / size * natural if size > 0 else sums
