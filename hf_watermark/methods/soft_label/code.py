"""The mathematics that trainer, verifier and wrapper share: key-drawn signs, the template that they make, the perturbed distribution."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...keys import SubKey
from .features import ImageFeatures


@dataclass(frozen=True)
class Template:
    """
    How far an image's log-probabilities are moved: a linear function of its features, whose weights are key-drawn signs.

    Every image carries every sign, whatever its class, and what a student learns from other images it learns for these too.

    Args:
        features ([`ImageFeatures`]):
            Of the pool's images.
        signs (`torch.Tensor`):
            `[features, classes]` (float): the signs of all sub-keys together, of mean square 1.
    """

    features: ImageFeatures
    signs: torch.Tensor

    @classmethod
    def of(cls, features: ImageFeatures, subkeys: list[SubKey], classes: int) -> "Template":
        """The template of several sub-keys, which together have the size of one."""
        signs = torch.stack([draw_signs(subkey, len(features.mean), classes) for subkey in subkeys])
        return cls(features, signs.sum(dim=0) / math.sqrt(len(subkeys)))

    def shift(self, images: torch.Tensor) -> torch.Tensor:
        """`[n, classes]`, of standard deviation 0.8 or so."""
        return self.features(images) @ self.signs.to(images.device) / math.sqrt(len(self.signs))


class HeldTemplate(nn.Module):
    """A [`Template`] as buffers of a model, with which it is saved and loaded; called on images, it gives their shift."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        shapes = {"mean": (features,), "whitening": (features, features), "signs": (features, classes)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def hold(self, template: Template, device: torch.device | str = "cpu") -> None:
        tables = {**vars(template.features), "signs": template.signs}
        for name, table in tables.items():
            self.register_buffer(name, table.clone().to(device))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tables: Any = self
        return Template(ImageFeatures(tables.mean, tables.whitening), tables.signs).shift(images)


def draw_signs(subkey: SubKey, features: int, classes: int) -> torch.Tensor:
    """Independent uniform signs `[features, classes]` (float) from the sub-key's stream `bits`."""
    bits = torch.from_numpy(subkey.stream("bits").bits(features * classes))
    return (2.0 * bits - 1).reshape(features, classes).float()


def without_class(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`scores` `[n, classes]` with minus infinity at each row's own class."""
    return scores.masked_fill(functional.one_hot(labels, scores.shape[1]).bool(), -math.inf)


def centred_others(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`scores` `[n, classes]` less their mean over the classes other than each row's own, which becomes 0."""
    own = functional.one_hot(labels, scores.shape[1]).bool()
    others = scores.masked_fill(own, 0.0)
    return (scores - others.sum(dim=1, keepdim=True) / (scores.shape[1] - 1)).masked_fill(own, 0.0)


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


def decision_loss(logits: torch.Tensor, labels: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """
    What has to be added to a row's cross-entropy so that its logits are right once `shift` is taken off, `[n]`: the network learns to add
    `shift` to all its logits, the top class's too, so that labels alone carry the mark.

    Args:
        logits, shift (`torch.Tensor`):
            `[n, classes]`.
        labels (`torch.Tensor`):
            `[n]` (int64).
    """
    losses = [functional.cross_entropy(scores, labels, reduction="none") for scores in (logits - shift, logits)]
    return losses[0] - losses[1]
