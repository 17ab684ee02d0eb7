"""Embeds soft-label watermarks: every training image gets a soft label whose small probabilities carry the key's signs."""

from functools import cached_property
from typing import Any

import torch
from torch import nn

from ...keys import Claim, SubKey
from ...training.course import Course, Forecast, Lessons
from ...training.embedding import Batch, Embedding, Plan, TrainingData, label_count, own_logits, refuse_other_classes
from ...training.feedback import Feedback, all_right
from ...training.triggers import collect_images, image_count, read_row, spread_classes
from .code import centred_others, decision_loss, soft_label_loss
from .config import SoftLabelConfig
from .facts import FACTS, free_signs, queries_per_class
from .reference import reference_answers
from .verifier import CSPVerifier, USPVerifier, refuse_too_few_signs


# Feedback changes the strength between these multiples of it.
LEAST, MOST = 0.5, 8.0
# An image teaches a sign of every feature.
LESSONS = Lessons("signs", enough=2200, pace=0.6)


class SoftLabelEmbedding(Embedding):
    """
    What [`USPEmbedding`] and [`CSPEmbedding`] share; use one of these. The task loss gets the cross-entropy with soft labels that leave `mass`
    to the other classes, and `strength` times the divergence of the model's distribution over these from the one whose log-probabilities the
    key's template has shifted, by at most about `amplitude`.
    """

    @classmethod
    def plan(cls, model: nn.Module, data: TrainingData, config: SoftLabelConfig, secret: bytes) -> Plan:
        data.refuse_missing("the queries of soft-label watermarks are")
        classes = label_count(model)
        sources = spread_classes(classes, config.source_classes)
        per_class = config.pool_per_class or queries_per_class(len(sources), image_count(data.dataset))
        images, labels, rows = collect_images(data.dataset, data.collate, sources, per_class, SubKey(0, 0, secret))
        refuse_too_few_signs(config, classes, images.shape[1])
        images = images.half()
        reference = reference_answers(data.dataset, data.collate, set(rows.tolist()), images, classes)
        tensors = {"images": images, "labels": labels, "rows": rows.int(), "reference": reference}
        return Plan.with_pool(config, {"classes": classes, "source_classes": sources}, tensors)

    def __init__(self, model: nn.Module, claim: Claim, data: TrainingData = TrainingData()):
        super().__init__(model, claim, data)
        verifier: Any = self.verifier_class(claim)
        self._template = verifier.template()
        self._units = len(verifier.features.mean) * free_signs(verifier.classes) * len(claim.subkeys)
        self._agreeing, self._compared = torch.zeros(()), torch.zeros(())
        if data.dataset is not None:
            refuse_other_classes(verifier.classes, model)
            first = data.first()
            read_row(first)
            refuse_other_labels(first["labels"])

    @cached_property
    def feedback(self) -> Feedback | None:
        config = self.config
        images = len(self.claim.pool[f"{self.method}.images"])
        best = all_right(FACTS[self.method], self._units // len(self.claim.subkeys), 0.5)
        return Feedback(
            self.read_now, config.target_log2_p, config.max_loss, LEAST, MOST, images, best, "raise `features`"
        )

    def forecast(self, course: Course) -> Forecast:
        images = course.steps * course.batch
        return Forecast.of_answers(course, self.model, self.claim, self._units, 0.5, images, LESSONS)

    def loss(self, batch: Batch, outputs: Any) -> torch.Tensor:
        config, labels = self.config, batch["labels"].flatten()
        logits = own_logits(batch, outputs)
        known = labels >= 0  # the task loss leaves the others out
        labels = labels.clamp_min(0)
        shift = config.amplitude * self._template.shift(batch["pixel_values"])
        self._count_agreement(logits.detach(), shift)
        losses = soft_label_loss(logits, labels, shift, config.mass, config.strength * self.taught)
        if config.decision:
            losses = losses + decision_loss(logits.float(), labels, config.decision * shift)
        return (losses * known).sum() / known.sum().clamp_min(1)

    def extend(self, batch: Batch) -> Batch:
        """
        The batch as it is.

        Raises:
            `ValueError`: when its labels are no integer classes `[n]` or `[n, 1]`.
        """
        refuse_other_labels(batch["labels"])
        return batch

    def _count_agreement(self, logits: torch.Tensor, shift: torch.Tensor) -> None:
        own, wanted = (centred_others(values.float(), logits.argmax(dim=1)) for values in (logits, shift))
        self._agreeing = self._agreeing.to(logits.device) + (own * wanted > 0).sum()
        self._compared = self._compared.to(logits.device) + (wanted != 0).sum()

    def logs(self) -> dict[str, float]:
        if not self._compared:
            return {}
        agreement = round(float(self._agreeing / self._compared), 4)
        self._agreeing, self._compared = torch.zeros(()), torch.zeros(())
        return {"watermark_sign_agreement": agreement}


def refuse_other_labels(labels: torch.Tensor) -> None:
    if labels.numel() != len(labels) or labels.is_floating_point():
        raise ValueError(
            f"`labels` has shape {tuple(labels.shape)} and type {labels.dtype}; soft-label watermarks make their own soft "
            "labels from integer classes [n]: leave out mixup and cutmix"
        )


class USPEmbedding(SoftLabelEmbedding):
    """Fits soft labels whose small probabilities follow a template of the key; see [`USPConfig`]."""

    verifier_class = USPVerifier


class CSPEmbedding(SoftLabelEmbedding):
    """Trains the code word of one licensee into the small probabilities of their copy; see [`CSPConfig`]."""

    verifier_class = CSPVerifier
