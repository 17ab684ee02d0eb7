"""Embeds soft-label watermarks: every training image gets a soft label whose small probabilities carry the key's signs."""

from typing import Any, ClassVar

import torch
from torch import nn

from ...keys import Claim, SubKey, pool_digest
from ...serialization import InvalidInput
from ...training.trainer import Plan, WatermarkTrainer
from ...training.triggers import collect_images, spread_classes
from .code import centred_others, decision_loss, soft_label_loss
from .config import CSPConfig, SoftLabelConfig, USPConfig
from .reference import reference_answers
from .verifier import CSPVerifier, USPVerifier, refuse_too_few_signs


class SoftLabelTrainer(WatermarkTrainer):
    """What [`USPTrainer`] and [`CSPTrainer`] share; use one of these."""

    def plan(self, config: SoftLabelConfig, secret: bytes) -> Plan:
        classes = self._label_count()
        sources = spread_classes(classes, config.source_classes)
        images, labels, rows = collect_images(
            self.train_dataset, self.data_collator, sources, config.pool_per_class, SubKey(0, 0, secret)
        )
        refuse_too_few_signs(config, classes, images.shape[1])
        images = images.half()
        reference = reference_answers(self.train_dataset, self.data_collator, set(rows.tolist()), images, classes)
        tensors = {"images": images, "labels": labels, "rows": rows.int(), "reference": reference}
        pool = {f"{config.method}.{name}": tensor for name, tensor in tensors.items()}
        layout = {"classes": classes, "source_classes": sources, "pool_sha256": pool_digest(pool)}
        return Plan(layout, config.subkeys, pool)

    def attach(self, claim: Claim) -> None:
        method = claim.assignment.method
        verifier: Any = {cls.method: cls.verifier_class for cls in self.method_classes()}[method](claim)
        # One entry per method: a trainer may stack both.
        self._templates = getattr(self, "_templates", {}) | {method: verifier.template()}
        self._agreeing, self._compared = torch.zeros(()), torch.zeros(())
        if self.train_dataset is None:  # a trainer made only to verify
            return
        if self._label_count() != verifier.classes:
            raise InvalidInput(
                f"the key was made for {verifier.classes} classes, this model has {self._label_count()}; make a fresh key"
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                f"`labels` has shape {tuple(labels.shape)} and type {labels.dtype}; soft-label watermarks make their own soft "
                "labels from integer classes [n]: leave out mixup, cutmix and label smoothing"
            )
        # Other methods may append images of their own to the batch.
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        logits = outputs["logits"][: len(labels)]
        for method in self._templates:
            loss = loss + self._soft_label_loss(method, logits, inputs["pixel_values"], labels)
        return (loss, outputs) if return_outputs else loss

    def _soft_label_loss(
        self, method: str, logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        config: Any = self.watermark[method]
        shift = config.amplitude * self._templates[method].shift(images)
        self._count_agreement(logits.detach(), shift)
        loss = soft_label_loss(logits, labels, shift, config.mass, config.strength).mean()
        if config.decision:
            loss = loss + decision_loss(logits.float(), labels, config.decision * shift).mean()
        return loss

    def _count_agreement(self, logits: torch.Tensor, shift: torch.Tensor) -> None:
        own, wanted = (centred_others(values.float(), logits.argmax(dim=1)) for values in (logits, shift))
        self._agreeing = self._agreeing.to(logits.device) + (own * wanted > 0).sum()
        self._compared = self._compared.to(logits.device) + (wanted != 0).sum()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._compared:
            logs["watermark_sign_agreement"] = round(float(self._agreeing / self._compared), 4)
            self._agreeing, self._compared = torch.zeros(()), torch.zeros(())
        super().log(logs, *args, **kwargs)

    def _label_count(self) -> int:
        model: Any = self._bare_model()
        if self.train_dataset is None:
            raise ValueError("`train_dataset` is missing; the queries of soft-label watermarks are taken from it")
        return int(model.config.num_labels)


class USPTrainer(SoftLabelTrainer):
    """
    [`~transformers.Trainer`] that fits soft labels whose small probabilities follow a template of the key.

    The images of the key's pool are taken out of the training data, so that a verifier's queries were never trained on.
    """

    method: ClassVar[str] = "usp"
    config_class = USPConfig
    verifier_class = USPVerifier


class CSPTrainer(SoftLabelTrainer):
    """
    [`~transformers.Trainer`] that trains the code word of one licensee into the small probabilities of his copy: one key per licensee.

    The images of the key's pool are taken out of the training data, so that a verifier's queries were never trained on.
    """

    method: ClassVar[str] = "csp"
    config_class = CSPConfig
    verifier_class = CSPVerifier
