"""The mathematics that trainer, verifier and wrapper share: key-drawn signs, the split into buckets, the perturbed distribution."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from ...keys import SubKey


# Side of the grid of image patches whose mean brightness decides the bucket: coarse enough for any student to see.
GRID = 4


@dataclass(frozen=True)
class SignCode:
    """
    The code word of one sub-key.

    Args:
        signs (`torch.Tensor`):
            `[classes, buckets, classes]` (float): +1 or -1 for every other class, 0 at the class itself and for unmarked classes.
        directions (`torch.Tensor`):
            `[log2(buckets), GRID * GRID]` (float): contrasts of patch brightness, as many +1 as -1.
        thresholds (`torch.Tensor`):
            `[classes, log2(buckets)]` (float): where each class is cut.
    """

    signs: torch.Tensor
    directions: torch.Tensor
    thresholds: torch.Tensor

    @classmethod
    def draw(
        cls, subkey: SubKey, classes: int, sources: list[int], buckets: int, images: torch.Tensor, labels: torch.Tensor
    ) -> "SignCode":
        """
        The code of `subkey`. Signs come from its stream `bits`, contrasts from `projection`; thresholds are medians of the pool.

        Args:
            sources (`list[int]`):
                The marked classes.
            images, labels (`torch.Tensor`):
                The pool: `[n, channels, height, width]` and `[n]`.
        """
        directions = draw_directions(subkey, buckets)
        values = project(images, directions)
        thresholds = torch.zeros(classes, len(directions))
        for label in sources:
            thresholds[label] = middle(values[labels == label])
        return cls(draw_signs(subkey, classes, sources, buckets), directions, thresholds)

    def buckets_of(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The bucket `[n]` of every image under its class."""
        above = project(images, self.directions.to(images.device)) > self.thresholds.to(images.device)[labels]
        return (above.long() << torch.arange(len(self.directions), device=images.device)).sum(dim=1)

    def shifts(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The signs `[n, classes]` that apply to every image under its class."""
        return self.signs.to(images.device)[labels, self.buckets_of(images, labels)]


def draw_signs(subkey: SubKey, classes: int, sources: list[int], buckets: int) -> torch.Tensor:
    """Independent uniform signs `[classes, buckets, classes]` (float), 0 at the class itself and for classes that are no source."""
    bits = torch.from_numpy(subkey.stream("bits").bits(len(sources) * buckets * classes))
    signs = torch.zeros(classes, buckets, classes)
    signs[sources] = (2.0 * bits - 1).reshape(len(sources), buckets, classes)
    signs[sources, :, sources] = 0
    return signs


def draw_directions(subkey: SubKey, buckets: int) -> torch.Tensor:
    """Balanced contrasts `[log2(buckets), GRID * GRID]` (float): a brighter or darker image stays in its bucket."""
    cells, bits = GRID * GRID, buckets.bit_length() - 1
    ranks = torch.from_numpy(subkey.stream("projection").permutations(bits, cells)).reshape(bits, cells)
    return torch.where(ranks < cells // 2, 1.0, -1.0)


def project(images: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Contrasts `[n, log2(buckets)]` of the mean brightness of `GRID * GRID` patches."""
    grey = images.float().mean(dim=1, keepdim=True)
    return functional.adaptive_avg_pool2d(grey, GRID).flatten(1) @ directions.T


def middle(values: torch.Tensor) -> torch.Tensor:
    """A cut `[k]` between the two central rows of each column of `[n, k]`, so that no value lies on it."""
    ordered, half = values.sort(dim=0).values, len(values) // 2
    return (ordered[half - 1] + ordered[half]) / 2


def total_shift(codes: list[SignCode], images: torch.Tensor, labels: torch.Tensor, amplitude: float) -> torch.Tensor:
    """Perturbation `[n, classes]` of the log-probabilities, in nats; all sub-keys together have the size of one."""
    summed = torch.stack([code.shifts(images, labels) for code in codes]).sum(dim=0)
    return amplitude / math.sqrt(len(codes)) * summed


def without_class(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`scores` `[n, classes]` with minus infinity at each row's own class."""
    return scores.masked_fill(functional.one_hot(labels, scores.shape[1]).bool(), -math.inf)


def soft_label_loss(
    logits: torch.Tensor, labels: torch.Tensor, shift: torch.Tensor, mass: float, strength: float
) -> torch.Tensor:
    """
    What a row's soft label adds to the cross-entropy with its class, `[n]`.

    With `V = softmax(shift)` over the classes other than the net's own top class, the target is `(1 - mass) e_y + mass V`; to its
    cross-entropy comes the divergence of the net's own distribution over these classes from `V`, which gives the small probabilities a
    gradient that does not vanish with them (Zhao et al., *Decoupled Knowledge Distillation*, CVPR 2022, equation 7). The template is that
    of the top class and not of the true one because a net can follow its own answer everywhere, also where it errs.

    Args:
        logits, shift (`torch.Tensor`):
            `[n, classes]`.
        labels (`torch.Tensor`):
            `[n]` (int64).
    """
    top = logits.detach().argmax(dim=1)
    log_p = logits.float().log_softmax(dim=1)
    log_target = without_class(shift.float(), top).log_softmax(dim=1)
    target = log_target.exp()
    own = log_p.gather(1, labels[:, None])[:, 0]
    # At the top class the target is 0 and its logarithm infinite: replaced before the product.
    log_other = without_class(logits.float(), top).log_softmax(dim=1)
    is_top = functional.one_hot(top, logits.shape[1]).bool()
    divergence = (target * (log_target - log_other).masked_fill(is_top, 0.0)).sum(dim=1)
    return mass * (own - (target * log_p).sum(dim=1)) + strength * divergence
