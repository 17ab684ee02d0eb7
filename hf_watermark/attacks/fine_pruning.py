"""
Pruning of units that clean data do not need: fine-pruning and adversarial neuron pruning.

Both silence units and keep all shapes, so that a verifier reads the result as it reads the original. torch-pruning removes
units and changes shapes, which is another attack.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.func import functional_call
from torch.nn import functional as F
from transformers import PreTrainedModel

from .base import Attack, private_seed, spent
from .pruning import MaskCallback
from .training import TrainingAttack, draw_batches
from .units import UnitLayer, last_units, mean_activity, stacked_images, unit_layers


@dataclass
class FinePrune(TrainingAttack):
    """
    Silence the features that the head reads, and the units of the last layers, that are least active on the attacker's images,
    then fine-tune the rest (Liu et al., https://huggingface.co/papers/1805.12185). The options of [`TrainingAttack`], and:

    Args:
        amount (`float`, *optional*, defaults to 0.6):
            Fraction of the units of each such layer to silence.
        layers (`int`, *optional*, defaults to 1):
            How many layers besides the head's features, counted from the last.
        activity_images (`int`, *optional*, defaults to 5000):
            Most images on which activity is measured.
    """

    name: ClassVar[str] = "fine_prune"

    amount: float = 0.6
    layers: int = 1
    activity_images: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(0 < self.amount < 1, "amount", "give the fraction of units to silence, between 0 and 1")
        for field in ("layers", "activity_images"):
            count = vars(self)[field]
            self._check(isinstance(count, int) and count > 0, field, "give a positive integer")

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        generator = torch.Generator().manual_seed(private_seed(f"{self.name}/images", self.seed))
        layers = last_units(model, data, self.layers)
        images, _ = stacked_images(data, self.activity_images, generator)
        weights: list[torch.Tensor] = []
        masks: list[torch.Tensor] = []
        for item, activity in zip(layers, mean_activity(model, layers, images, self.batch_size), strict=True):
            idle = torch.zeros(len(item), dtype=torch.bool)
            idle[activity.argsort(stable=True)[: round(self.amount * len(item))]] = True
            weights += item.parameters()
            masks += item.masks(idle)
        mask = MaskCallback(weights, masks)
        mask.impose()
        model.requires_grad_(True)
        return self.train(model, data, callbacks=[mask])


@dataclass
class AdversarialNeuronPrune(Attack):
    """
    Find units whose slight perturbation spoils the answers, and silence them: units that carry a hidden rule are the most
    sensitive ones (Wu & Wang, NeurIPS 2021, https://huggingface.co/papers/2110.14430, equation 5).

    Each unit gets a mask m in [0, 1], trained against the worst relative change of its weights and bias within `epsilon`:
    minimise over m: `alpha * L(m w, b) + (1 - alpha) * max over d, x of L((m + d) w, (1 + x) b)`. Weights themselves are
    not trained. Runs in evaluation mode, so that BatchNorm statistics stay those of the model.

    Args:
        epsilon (`float`, *optional*, defaults to 0.4):
            Largest relative perturbation.
        alpha (`float`, *optional*, defaults to 0.2):
            Share of the loss without perturbation.
        threshold (`float`, *optional*, defaults to 0.2):
            Units whose mask ends below it are silenced.
        steps (`int`, *optional*, defaults to 500):
            Steps of the masks; each has one step of the perturbation before it. The paper takes 2000.
        learning_rate (`float`, *optional*, defaults to 0.2):
            Rate of the masks (SGD, momentum 0.9).
        batch_size (`int`, *optional*, defaults to 128):
            Images per step.
        seed (`int`, *optional*, defaults to 0):
            Seed of the order of the data and of the first perturbations.
    """

    name: ClassVar[str] = "adversarial_neuron_prune"
    needs_data: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = True

    epsilon: float = 0.4
    alpha: float = 0.2
    threshold: float = 0.2
    steps: int = 500
    learning_rate: float = 0.2
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        self._check(0 < self.epsilon < float("inf"), "epsilon", "give a positive number, such as 0.4")
        self._check(0 <= self.alpha <= 1, "alpha", "give a number from 0 to 1")
        self._check(0 < self.threshold <= 1, "threshold", "give a number above 0, up to 1")
        self._check(0 < self.learning_rate < float("inf"), "learning_rate", "give a positive number")
        for field in ("steps", "batch_size"):
            count = vars(self)[field]
            self._check(isinstance(count, int) and count > 0, field, "give a positive integer")

    def budget(self, data: Any = None) -> dict[str, int]:
        if data is None:
            return super().budget(data)
        size = min(self.batch_size, len(data))
        # Three passes: the perturbation's, and the masks' with and without it.
        return spent(min(len(data), self.steps * size), self.steps, 3 * self.steps * size)

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        layers = unit_layers(model, data)
        for item, mask in zip(layers, self.masks(model, layers, data), strict=True):
            item.silence(mask < self.threshold)
        return model

    def masks(self, model: PreTrainedModel, layers: list[UnitLayer], data: Any) -> list[torch.Tensor]:
        """The trained mask (units,) of each layer; low where a unit is sensitive."""
        generator = torch.Generator().manual_seed(private_seed(self.name, self.seed))
        masks = [torch.ones(len(item), device=model.device, requires_grad=True) for item in layers]
        optimizer = torch.optim.SGD(masks, lr=self.learning_rate, momentum=0.9)
        model.eval()
        for images, labels in draw_batches(data, self.batch_size, self.steps, generator, model):
            noise = [self._start(mask, generator) for _ in range(2) for mask in masks]
            loss = self._loss(model, layers, masks, noise, images, labels)
            slopes = torch.autograd.grad(loss, noise)
            with torch.no_grad():
                for change, slope in zip(noise, slopes, strict=True):
                    change.add_(self.epsilon * slope.sign()).clamp_(-self.epsilon, self.epsilon)
            plain = self._loss(model, layers, masks, None, images, labels)
            loss = self.alpha * plain + (1 - self.alpha) * self._loss(model, layers, masks, noise, images, labels)
            for mask, slope in zip(masks, torch.autograd.grad(loss, masks), strict=True):
                mask.grad = slope
            optimizer.step()
            with torch.no_grad():
                for mask in masks:
                    mask.clamp_(0, 1)
        return [mask.detach().cpu() for mask in masks]

    def _start(self, mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        uniform = 2 * torch.rand(len(mask), generator=generator) - 1
        return (self.epsilon * uniform).to(mask.device).requires_grad_()

    def _loss(
        self,
        model: PreTrainedModel,
        layers: list[UnitLayer],
        masks: list[torch.Tensor],
        noise: list[torch.Tensor] | None,
        images: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        changed: dict[str, torch.Tensor] = {}
        for place, item in enumerate(layers):
            weight, bias, mask = item.carrier.weight, item.carrier.bias, masks[place]
            scale = mask if noise is None else mask + noise[place]
            changed[f"{item.name}.weight"] = weight.detach() * scale.view(-1, *[1] * (weight.dim() - 1))  # type: ignore[operator,union-attr]
            if bias is not None and noise is not None:
                changed[f"{item.name}.bias"] = bias.detach() * (1 + noise[len(layers) + place])  # type: ignore[operator]
        logits = functional_call(model, changed, (), {"pixel_values": images}).logits
        return F.cross_entropy(logits.float(), labels)
