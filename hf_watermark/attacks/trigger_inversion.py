"""
Trigger inversion: find the smallest patch that moves every image to a class, and make the model forget it.

Written here, because the version in adversarial-robustness-toolbox works on Keras models only.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from .base import private_seed
from .preprocessing import pixel_range
from .training import TrainingAttack, draw_batches
from .units import last_units, mean_activity, stacked_images


Trigger = tuple[torch.Tensor, torch.Tensor]
"""Mask (1, 1, H, W) in [0, 1] and pattern (1, C, H, W)."""


@dataclass
class TriggerUnlearn(TrainingAttack):
    """
    Invert a trigger for each label in the data (Neural Cleanse, Wang et al., IEEE S&P 2019, section IV), then make the model
    forget them. The options of [`TrainingAttack`], and:

    Args:
        action (`str`, *optional*, defaults to `"unlearn"`):
            `"unlearn"`: fine-tune with triggers on a share of the images, under the true labels. `"prune"`: silence the units
            that the triggers excite; no training. `"launder"`: give those units new random weights, then unlearn (Aiken et
            al., https://huggingface.co/papers/2004.11368).
        targets (`str`, *optional*, defaults to `"all"`):
            Use the triggers of `"all"` labels, or only those that are an `"outlier"`: smaller than the median by more than two
            normalised median deviations (none may be: then the smallest one is used).
        inversion_steps (`int`, *optional*, defaults to 300):
            Steps of Adam per label.
        inversion_rate (`float`, *optional*, defaults to 0.1):
            Rate of Adam.
        stamped (`float`, *optional*, defaults to 0.2):
            Share of the images that carry a trigger while unlearning.
        amount (`float`, *optional*, defaults to 0.1):
            Fraction of the units to prune or reset.
        layers (`int`, *optional*, defaults to 1):
            In how many layers, counted from the last, besides the features that the head reads.
    """

    name: ClassVar[str] = "trigger_unlearn"

    action: Literal["unlearn", "prune", "launder"] = "unlearn"
    targets: Literal["all", "outlier"] = "all"
    inversion_steps: int = 300
    inversion_rate: float = 0.1
    stamped: float = 0.2
    amount: float = 0.1
    layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(self.action in ("unlearn", "prune", "launder"), "action", "choose 'unlearn', 'prune' or 'launder'")
        self._check(self.targets in ("all", "outlier"), "targets", "choose 'all' or 'outlier'")
        self._check(0 < self.inversion_rate < float("inf"), "inversion_rate", "give a positive number")
        self._check(0 < self.stamped <= 1, "stamped", "give the share of the images, above 0, up to 1")
        self._check(0 < self.amount < 1, "amount", "give the fraction of units, between 0 and 1")
        for field in ("inversion_steps", "layers"):
            count = vars(self)[field]
            self._check(isinstance(count, int) and count > 0, field, "give a positive integer")

    def budget(self, data: Any = None) -> dict[str, int]:
        budget = super().budget(data)
        if self.action == "prune":
            budget |= {"steps": 0, "examples": 0}
        steps = self.inversion_steps * len(labels_of(data))
        size = min(self.batch_size, len(data))
        return budget | {"steps": budget["steps"] + steps, "examples": budget["examples"] + steps * size}

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        triggers = self.invert(model, data)
        if self.action != "prune":
            model.requires_grad_(True)
        if self.action != "unlearn":
            self.treat_units(model, data, triggers)
        if self.action == "prune":
            return model
        generator = torch.Generator().manual_seed(private_seed(f"{self.name}/stamps", self.seed))
        masks, patterns = (torch.cat(parts) for parts in zip(*triggers, strict=True))

        def change(bare: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
            """A trigger, drawn anew, on a share of the images; labels stay true."""
            images = inputs["pixel_values"]
            drawn = torch.randint(len(masks), (len(images),), generator=generator)
            trigger = masks[drawn].to(images), patterns[drawn].to(images)
            chosen = (torch.rand(len(images), generator=generator) < self.stamped).to(images.device)
            return torch.where(chosen[:, None, None, None], stamp(images, trigger), images)

        return self.train(model, data, change=change)

    def invert(self, model: PreTrainedModel, data: Any) -> list[Trigger]:
        """The inverted triggers to forget."""
        generator = torch.Generator().manual_seed(private_seed(f"{self.name}/inversion", self.seed))
        found = {label: self.invert_one(model, data, label, generator) for label in labels_of(data)}
        if self.targets == "all":
            return list(found.values())
        sizes = {label: float(mask.sum()) for label, (mask, _) in found.items()}
        return [found[label] for label in small_outliers(sizes)]

    def invert_one(self, model: PreTrainedModel, data: Any, target: int, generator: torch.Generator) -> Trigger:
        """
        A trigger that moves images to the class `target`: Adam on `cross-entropy + cost * mean(mask)`, the cost raised while
        99 % of the batch follow and lowered else.
        """
        model.eval()
        low, high = (torch.tensor(side, device=model.device).view(1, -1, 1, 1) for side in pixel_range(data))
        shape = torch.as_tensor(data[0]["pixel_values"]).shape
        raw_mask = torch.full((1, 1, *shape[1:]), -1.0, device=model.device, requires_grad=True)
        raw_pattern = (0.1 * torch.randn(1, *shape, generator=generator)).to(model.device).requires_grad_()
        optimizer = torch.optim.Adam([raw_mask, raw_pattern], lr=self.inversion_rate, betas=(0.5, 0.9))
        cost = 0.1
        for images, _ in draw_batches(data, self.batch_size, self.inversion_steps, generator, model):
            trigger = raw_mask.sigmoid(), low + (high - low) * raw_pattern.sigmoid()
            logits = model(pixel_values=stamp(images, trigger)).logits.float()
            wanted = torch.full((len(images),), target, device=model.device)
            loss = F.cross_entropy(logits, wanted) + cost * trigger[0].mean()
            raw_mask.grad, raw_pattern.grad = torch.autograd.grad(loss, [raw_mask, raw_pattern])
            optimizer.step()
            followed = float((logits.argmax(dim=1) == target).float().mean())
            cost = min(cost * 1.1, 1e3) if followed >= 0.99 else max(cost / 1.1, 1e-3)
        return raw_mask.detach().sigmoid(), low + (high - low) * raw_pattern.detach().sigmoid()

    def treat_units(self, model: PreTrainedModel, data: Any, triggers: list[Trigger]) -> None:
        """Silence, or for `"launder"` reset, the units that any trigger excites most, as a share of what they do."""
        generator = torch.Generator().manual_seed(private_seed(f"{self.name}/units", self.seed))
        layers = last_units(model, data, self.layers)
        images = stacked_images(data, 1000, generator)[0].to(model.device)
        calm = mean_activity(model, layers, images, self.batch_size)
        stamped = [mean_activity(model, layers, stamp(images, one), self.batch_size) for one in triggers]
        for place, item in enumerate(layers):
            # A share, because the scale of a unit is arbitrary.
            shares = [(one[place] - calm[place]) / (one[place] + calm[place]).clamp_min(1e-12) for one in stamped]
            excess = torch.stack(shares).amax(dim=0)
            excited = torch.zeros(len(item), dtype=torch.bool)
            excited[excess.argsort(descending=True)[: max(1, round(self.amount * len(item)))]] = True
            if self.action == "prune":
                item.silence(excited)
            else:
                item.reset(excited, generator)


def labels_of(data: Any) -> list[int]:
    """Every label in the data, in order."""
    return sorted({int(data[row]["labels"]) for row in range(len(data))})


def stamp(images: torch.Tensor, trigger: Trigger) -> torch.Tensor:
    """Images (B, C, H, W) with the pattern put over them where the mask says."""
    mask, pattern = trigger
    return images * (1 - mask) + pattern * mask


def small_outliers(sizes: dict[int, float]) -> list[int]:
    """Labels whose size is below the median by more than 2 normalised median deviations; the smallest one if none is."""
    values = torch.tensor(list(sizes.values()), dtype=torch.float64)
    middle = values.median()
    deviation = 1.4826 * (values - middle).abs().median()
    chosen = [label for label, size in sizes.items() if float(middle) - size > 2 * float(deviation)]
    return chosen or [min(sizes, key=sizes.__getitem__)]
