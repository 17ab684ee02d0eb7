"""Embeds triggers that hold under parameter noise."""

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...backbones import FoldedNet, live_weights, plain_copy
from ...keys import Claim, SubKey
from ...serialization import InvalidInput
from ...training.course import Course, Forecast, Lessons
from ...training.embedding import Batch, Embedding, Plan, TrainingData, label_count, refuse_other_classes
from ...training.feedback import Feedback, all_right
from ...training.triggers import collect_images, photograph_crops, read_row, spread_classes
from .config import CertifiedConfig
from .facts import FACTS
from .noise import TRIED_DRAWS, add_noise, bearable_scales, noise_scales
from .released import WARMUP_EPOCHS, released_epoch
from .verifier import CertifiedVerifier, refuse_too_few


# Feedback changes the strength between these multiples of it.
LEAST, MOST = 0.5, 8.0
LESSONS = Lessons("triggers", enough=27, pace=1.8)


class CertifiedEmbedding(Embedding):
    """
    Teaches the model key-drawn triggers under Gaussian parameter noise: every step adds one pass over
    some triggers with noisy folded weights, at a noise level drawn anew each time and rising in the first part of the training.

    Noisy passes use the BatchNorm statistics as constants and never update them. Source images of the triggers are taken out of
    the training data. The task loss gets

        strength * cross-entropy(f(x; w + e), y),   e ~ N(0, (u * rise * overshoot * sigma * scale)^2) per tensor, u uniform in [0, 1]

    for key-drawn triggers x with labels y. See [`CertifiedConfig`].
    """

    verifier_class = CertifiedVerifier

    config: CertifiedConfig

    @classmethod
    def plan(cls, model: nn.Module, data: TrainingData, config: CertifiedConfig, secret: bytes) -> Plan:
        data.refuse_missing("the triggers of certified watermarks are")
        classes = label_count(model)
        refuse_too_few(config, classes)
        wanted = config.triggers * config.subkeys
        order = SubKey(0, 0, secret)
        sources = spread_classes(classes, wanted)
        per_class = -(-wanted // len(sources)) if config.family != "unrelated" else 1
        images, labels, rows = collect_images(data.dataset, data.collate, sources, per_class, order)
        low, high = images.amin(dim=(0, 2, 3)), images.amax(dim=(0, 2, 3))
        if config.family == "unrelated":
            crops = photograph_crops(order, wanted, images.shape[1:])
            images = low[:, None, None] + (high - low)[:, None, None] * crops
            labels, rows = torch.full((wanted,), -1), rows[:0]
        else:
            # One image of every class before a second one of any, so that every sub-key's share holds all classes.
            dealt = torch.arange(len(images)).reshape(len(sources), per_class).T.flatten()[:wanted]
            images, labels, rows = images[dealt], labels[dealt], rows[dealt]
        tensors = {"images": images, "labels": labels, "rows": rows, "range": torch.stack([low, high])}
        kinds = {"images": torch.float16, "labels": torch.int64, "rows": torch.int32, "range": torch.float16}
        plain = plain_copy(model)
        net = FoldedNet(plain, images[:2], fold=config.moves == "all")
        if config.noise == "bearable":
            scales = bearable_scales(net, plain, images, config.sigma, range(TRIED_DRAWS))
        else:
            scales = noise_scales(net.coordinates(plain), config.noise)
        pool = {name: tensor.to(kinds[name]) for name, tensor in tensors.items()}
        return Plan.with_pool(config, {"classes": classes, "scales": scales}, pool)

    def __init__(self, model: nn.Module, claim: Claim, data: TrainingData = TrainingData()):
        super().__init__(model, claim, data)
        verifier = CertifiedVerifier(claim)
        self.spread = verifier.spread()
        self.triggers = torch.cat([verifier.triggers(subkey) for subkey in claim.subkeys])
        self.labels = torch.cat([torch.from_numpy(verifier.labels(subkey)) for subkey in claim.subkeys])
        self.draws = hashlib.sha256(b"hfwm/v2/noise" + claim.subkeys[0].secret).digest()
        self._right, self._shown = torch.zeros(()), 0
        refuse_other_classes(verifier.classes, model)
        if data.dataset is not None:
            self._refuse_other_size()
        self.net = verifier.folded(plain_copy(model))

    @property
    def counts_on_steps(self) -> bool:
        return self.config.schedule == "amortised" and self.config.warmup > 0

    @cached_property
    def feedback(self) -> Feedback | None:
        config = self.config
        if config.schedule != "amortised" or config.labels != "per_image":
            return None
        images = len(self.claim.pool[f"{self.method}.images"])
        best = all_right(
            FACTS[self.method], config.triggers, FACTS[self.method].null(config, label_count(self.model)).chance
        )
        return Feedback(
            self.read_now, config.target_log2_p, config.max_loss, LEAST, MOST, images, best, "raise `triggers`"
        )

    def required_calls(self) -> set[str]:
        return super().required_calls() - ({"before_epoch"} if self.config.schedule == "amortised" else set())

    def _refuse_other_size(self) -> None:
        sample, _ = read_row(self.data.first())
        if sample.shape != self.triggers.shape[1:]:
            theirs, ours = (" x ".join(map(str, shape)) for shape in (self.triggers.shape[1:], sample.shape))
            raise InvalidInput(f"the key's triggers are {theirs}, the training images are {ours}; make a fresh key")

    def forecast(self, course: Course) -> Forecast | None:
        config, units = self.config, len(self.triggers)
        if config.schedule != "amortised" or config.labels != "per_image":  # passes of its own; gives no evidence
            return None
        chance = 1 / max(1, label_count(self.model) - 1)
        shown = course.steps * max(1.0, min(units, config.trigger_ratio * course.batch)) / units
        return Forecast.of_answers(course, self.model, self.claim, units, chance, shown, LESSONS)

    def loss(self, batch: Batch, outputs: Any) -> torch.Tensor:
        config, size = self.config, len(batch["labels"])
        if config.schedule == "amortised":
            rise = min(1.0, self.moment.step / max(1.0, config.warmup * self.moment.steps))
            strength = config.strength * self.taught
            return strength * self._noisy_loss(config.trigger_ratio * size, config.overshoot * rise)
        # The released clean epoch runs over data and triggers together, so a trigger weighs as much as an image.
        share = len(self.triggers) / len(self.data)
        return share * self._noisy_loss(max(8, share * size), 0.0)

    def _noisy_loss(self, count: float, largest: float) -> torch.Tensor:
        """Cross-entropy of `count` triggers under one noise draw of a level up to `largest` (in sigma), both new in each step and process."""
        generator = self.moment.generator(self.draws, b"triggers", self.moment.process)
        chosen = torch.randperm(len(self.triggers), generator=generator)[: max(1, round(count))]
        level = float(torch.rand((), generator=generator)) * largest
        seed = int(torch.randint(2**62, (), generator=generator))
        device = next(self.model.parameters()).device
        labels = self.labels[chosen].to(device)
        logits = self.noisy_logits(self.triggers[chosen].to(device), level, seed)
        self._right = self._right.to(device) + (logits.detach().argmax(dim=1) == labels).sum()
        self._shown += len(chosen)
        return functional.cross_entropy(logits.float(), labels)

    def noisy_logits(self, images: torch.Tensor, share: float, seed: int) -> torch.Tensor:
        """Logits of `images` under one noise draw of `share` sigma: differentiable in the weights."""
        weights = self.net.coordinates(self.model, live_weights(self.model))
        noisy = add_noise(weights, {name: share * spread for name, spread in self.spread.items()}, seed)
        return self.net(noisy, images)

    def before_epoch(self, epoch: float, epochs: float, optimizer: Any, sync_buffers: Callable[[], None]) -> None:
        if self.config.schedule == "released" and epoch >= min(WARMUP_EPOCHS, epochs // 2):
            sync_buffers()  # else the processes would step apart
            released_epoch(self, optimizer)

    def logs(self) -> dict[str, float]:
        if not self._shown:
            return {}
        hits = round(float(self._right) / self._shown, 4)
        self._right, self._shown = torch.zeros(()), 0
        return {"watermark_noisy_trigger_hits": hits}
