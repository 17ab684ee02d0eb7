"""What a mark costs: how far the weights moved, and how far the answers."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..backbones import evaluation_mode, logits_of
from ..publishing.cost import in_words
from ..serialization import InvalidInput
from .inputs import batch_statistics


BATCH = 16


@dataclass(frozen=True)
class FidelityReport:
    """
    A marked model against the model before.

    Args:
        kl (`float`):
            Mean Kullback-Leibler divergence of the answers, in nats; of a model without logits the squared change of its features against their
            square.
        agreement (`float`):
            Share of images (or pixels) with the same first class; of a model without logits 1.
        images (`int`):
            Number of images.
        synthetic (`bool`):
            The images were made up: `kl` is a forecast.
        layers (`dict[str, float]`):
            Change of each matrix or kernel that changed, against its norm.
    """

    kl: float
    agreement: float
    images: int
    synthetic: bool
    layers: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        most = max(self.layers.values(), default=0.0)
        return (
            f"{in_words(self.kl, self.agreement, self.images, self.synthetic)}; "
            f"{len(self.layers)} weight matri{'x' if len(self.layers) == 1 else 'ces'} changed, by {100 * most:.1f} % of their norm at most"
        )


@torch.no_grad()
def measure_fidelity(
    before: nn.Module,
    after: nn.Module,
    images: torch.Tensor,
    synthetic: bool = False,
    layers: dict[str, float] | None = None,
) -> FidelityReport:
    """
    Args:
        before, after (`nn.Module`):
            Two models of one architecture: classifiers, segmentation models, or backbones without a head.
        images (`torch.Tensor`):
            `[n, channels, height, width]` in the models' input space.
        synthetic (`bool`, *optional*, defaults to `False`):
            The images were made up: BatchNorms then normalise by the batch, because statistics of real images would exaggerate the difference.
        layers (`dict[str, float]`, *optional*):
            Change of each matrix against its norm, where the models' weights are not in memory.

    Raises:
        [`~serialization.InvalidInput`]: when there is no image, or the models answer with nothing that can be compared.
    """
    if not len(images):
        raise InvalidInput("`images` is empty: give at least one")
    if layers is None:
        old, new = dict(before.named_parameters()), dict(after.named_parameters())
        matrices = [name for name, weight in old.items() if weight.ndim > 1 and not torch.equal(weight, new[name])]
        layers = {name: relative_change(old[name], new[name]) for name in matrices}
    distances, same, count = [], 0, 0
    for batch in images.split(BATCH):
        first, second = answers(before, batch, synthetic), answers(after, batch, synthetic)
        if first[1]:
            a, b = first[0].log_softmax(dim=1), second[0].log_softmax(dim=1)
            distances.append((a.exp() * (a - b)).sum(dim=1).flatten())
            equal = a.argmax(dim=1) == b.argmax(dim=1)
            same, count = same + int(equal.sum()), count + equal.numel()
        else:
            squares = (first[0] - second[0]).square().flatten(1).sum(dim=1)
            distances.append(squares / first[0].square().flatten(1).sum(dim=1).clamp_min(1e-12))
    kl = max(0.0, float(torch.cat(distances).double().mean()))
    return FidelityReport(kl, same / count if count else 1.0, len(images), synthetic, layers)


def answers(model: nn.Module, images: torch.Tensor, synthetic: bool) -> tuple[torch.Tensor, bool]:
    """What a model says of images, float32, and whether these are logits `[n, classes, ...]`."""
    parameter = next(model.parameters())
    with torch.no_grad(), evaluation_mode(model), batch_statistics(model, synthetic):
        output = model(images.to(parameter))
    for name in ("last_hidden_state", "feature_maps"):
        features: Any = getattr(output, name, None)
        if features is not None:
            return (features if isinstance(features, torch.Tensor) else features[-1]).float(), False
    found = logits_of(output)
    return found.float(), True


def relative_change(old: torch.Tensor, new: torch.Tensor) -> float:
    """How far a weight moved, against its norm."""
    return float((new.float() - old.float()).norm() / old.float().norm().clamp_min(1e-12))
