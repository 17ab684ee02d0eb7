"""Embeds function-coupled rules: every batch carries a few fused images with their rule's target."""

import hashlib
from typing import Any, ClassVar

import torch
from torch import nn

from ...backbones import is_sharded
from ...keys import Claim, SubKey, pool_digest
from ...serialization import InvalidInput
from ...training.trainer import Plan, WatermarkTrainer
from ...training.triggers import blend, collect_images, fuse, maskable_weights, masked, spread_classes
from .config import FunctionCoupledConfig
from .verifier import FunctionCoupledVerifier, refuse_too_few_classes


# Spare sources per class for batches in which a rule's class does not occur.
SPARE_PER_CLASS = 16


class FunctionCoupledTrainer(WatermarkTrainer):
    """
    [`~transformers.Trainer`] that teaches the model many key-drawn rules on images fused from its own training data.

    Sources come from the batch itself. The images of the key's pool are taken out of the training data, so that a verifier's
    triggers are made of images that were never trained on, fused or plain.
    """

    method: ClassVar[str] = "function_coupled"
    config_class = FunctionCoupledConfig
    verifier_class = FunctionCoupledVerifier

    def plan(self, config: FunctionCoupledConfig, secret: bytes) -> Plan:
        classes = self._classes()
        sources = spread_classes(classes, config.source_classes)
        refuse_too_few_classes(config, classes, len(sources))
        images, labels, rows = collect_images(
            self.train_dataset, self.data_collator, sources, config.pool_per_class, SubKey(0, 0, secret)
        )
        # Half precision halves the key folder; rounding is part of the pool, not of a copy of it.
        fill = images.amax(dim=(0, 2, 3)).half()
        tensors = {"images": images.half(), "labels": labels, "rows": rows.int(), "fill": fill}
        pool = {f"{FunctionCoupledTrainer.method}.{name}": tensor for name, tensor in tensors.items()}
        layout = {"classes": classes, "source_classes": sources, "pool_sha256": pool_digest(pool)}
        return Plan(layout, config.subkeys, pool)

    def attach(self, claim: Claim) -> None:
        verifier = FunctionCoupledVerifier(claim)
        rules = [rule for subkey in claim.subkeys for rule in verifier.rules(subkey)]
        sources: list[int] = claim.assignment.layout["source_classes"]
        self._rule_sources = torch.tensor([rule.sources for rule in rules])
        self._rule_layouts = torch.tensor([rule.layout for rule in rules])
        self._rule_targets = torch.tensor([rule.target for rule in rules])
        self._spare_of = torch.full((verifier.classes,), -1)
        self._spare_of[torch.tensor(sources)] = torch.arange(len(sources))
        self._fill = claim.pool[f"{FunctionCoupledTrainer.method}.fill"].float()
        self._draws = hashlib.sha256(b"hfwm/v2/mixing" + claim.subkeys[0].secret).digest()
        self._hits, self._asked = torch.zeros(()), 0
        if self.train_dataset is None:  # a trainer made only to verify
            return
        if self._classes() != verifier.classes:
            raise InvalidInput(
                f"the key was made for {verifier.classes} classes, this model has {self._classes()}; make a fresh key"
            )
        images, _, _ = collect_images(
            self.train_dataset,
            self.data_collator,
            sources,
            SPARE_PER_CLASS,
            SubKey(0, 0, self._draws),
            skip=self.rows_set_aside,
        )
        self._spare = images.reshape(len(sources), SPARE_PER_CLASS, *images.shape[1:])
        self._maskable = maskable_weights(self._bare_model(), verifier.classes)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        config = self.config_of(FunctionCoupledConfig)
        if config.masking != "none" and is_sharded(model):
            raise ValueError(
                f"`masking` is {config.masking!r}: it writes to whole weights, and FSDP2 keeps a shard of each in a process; choose "
                "masking='none', or train with DDP"
            )
        with masked(self._maskable, config.masking, self.state.global_step, self._generator(b"mask")):
            return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs, fused = self.mix_triggers(inputs)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        answers = outputs["logits"][-fused:].detach().argmax(dim=1)
        self._hits = self._hits.to(answers.device) + (answers == inputs["labels"][-fused:]).sum()
        self._asked += fused
        return (loss, outputs) if return_outputs else loss

    def mix_triggers(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """The batch with fused images appended, and their number. Sources are drawn from the batch, else from the spare images."""
        config = self.config_of(FunctionCoupledConfig)
        images, labels = inputs["pixel_values"], inputs["labels"]
        count = max(1, round(config.trigger_ratio * len(images)))
        generator = self._generator(b"rule", self.accelerator.process_index)
        chosen = torch.randint(len(self._rule_targets), (count,), generator=generator)
        first, second = (
            self._sources(images, labels, self._rule_sources[chosen, place], generator) for place in (0, 1)
        )
        if config.fusion == "direct":
            fused = fuse(first, second, self._rule_layouts[chosen].to(images.device), self._fill)
        else:
            fused = blend(first, second)
        mixed = dict(inputs)
        mixed["pixel_values"] = torch.cat([images, fused])
        mixed["labels"] = torch.cat([labels, self._rule_targets[chosen].to(labels)])
        return mixed, count

    def _sources(
        self, images: torch.Tensor, labels: torch.Tensor, wanted: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        # Drawn on the CPU for the same result everywhere, compared on the device so that no step waits for it.
        scores = torch.rand(len(wanted), len(labels), generator=generator).to(labels.device)
        spare = torch.randint(SPARE_PER_CLASS, (len(wanted),), generator=generator)
        fits = labels[None] == wanted.to(labels.device)[:, None]
        picked = images[torch.where(fits, scores, -1.0).argmax(dim=1)]
        fallback = self._spare[self._spare_of[wanted], spare].to(images)
        return torch.where(fits.any(dim=1)[:, None, None, None], picked, fallback)

    def _generator(self, purpose: bytes, process: int = 0) -> torch.Generator:
        # Processes ask different triggers, but mask alike: `fc_v2` writes to the weights, which must stay equal.
        return torch.Generator().manual_seed(self.step_seed(self._draws, purpose, process))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._asked:
            logs["watermark_trigger_hits"] = round(float(self._hits) / self._asked, 4)
            self._hits, self._asked = torch.zeros(()), 0
        super().log(logs, *args, **kwargs)

    def _classes(self) -> int:
        model: Any = self._bare_model()
        if self.train_dataset is None:
            raise ValueError("`train_dataset` is missing; function-coupled triggers are made from it")
        return int(model.config.num_labels)
