"""Embeds function-coupled rules: beside every batch goes one of fused images with their rule's target."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...backbones import is_sharded, logits_of
from ...keys import Claim, SubKey
from ...training.course import Course, Forecast, Lessons
from ...training.embedding import (
    Batch,
    Embedding,
    Extended,
    Moment,
    Plan,
    Step,
    TrainingData,
    label_count,
    refuse_other_classes,
    task_rows,
)
from ...training.feedback import Feedback, all_right
from ...training.triggers import (
    blend,
    collect_images,
    frozen_statistics,
    fuse,
    in_kind,
    maskable_weights,
    masked,
    spread_classes,
)
from .auxiliary import SourceHead
from .config import FunctionCoupledConfig
from .facts import FACTS
from .teaching import LEAST, MOST, Teaching, canvas_for
from .verifier import FunctionCoupledVerifier, refuse_too_few_classes


# Spare sources per class for batches in which a rule's class does not occur.
SPARE_PER_CLASS = 16
LESSONS = Lessons("rules", enough=80, pace=0.7)


class FunctionCoupledEmbedding(Embedding):
    """
    Shows the model images fused by key-drawn rules, with the rule's target as their label: in every batch, where the task loss fits them as well; and,
    from `apart_from` on, in a pass of their own, in which BatchNorm takes its running statistics. Were these moved by many fused images to the
    end, whoever takes them anew on plain ones would lose accuracy and the mark. From the beginning such a pass teaches nothing: while a new head sets
    the weights moving, running statistics lie so far behind that all fused images end in the same features. See [`FunctionCoupledConfig`].

    Sources come from the batch itself. The images of the key's pool are taken out of the training data, so that a verifier's
    triggers are made of images that were never trained on, fused or plain.
    """

    verifier_class = FunctionCoupledVerifier

    config: FunctionCoupledConfig

    @classmethod
    def plan(cls, model: nn.Module, data: TrainingData, config: FunctionCoupledConfig, secret: bytes) -> Plan:
        data.refuse_missing("function-coupled triggers are")
        classes = label_count(model)
        sources = spread_classes(classes, config.source_classes)
        refuse_too_few_classes(config, classes, len(sources))
        images, labels, rows = collect_images(
            data.dataset, data.collate, sources, config.pool_per_class, SubKey(0, 0, secret)
        )
        # Half precision halves the key folder; rounding is part of the pool, not of a copy of it.
        white = canvas_for(config, model) == "white"
        fill = (images.amax(dim=(0, 2, 3)) if white else images.mean(dim=(0, 2, 3))).half()
        tensors = {"images": images.half(), "labels": labels, "rows": rows.int(), "fill": fill}
        return Plan.with_pool(config, {"classes": classes, "source_classes": sources}, tensors)

    def __init__(self, model: nn.Module, claim: Claim, data: TrainingData = TrainingData()):
        super().__init__(model, claim, data)
        verifier = FunctionCoupledVerifier(claim)
        rules = [rule for subkey in claim.subkeys for rule in verifier.rules(subkey)]
        sources: list[int] = claim.assignment.layout["source_classes"]
        self._rule_sources = torch.tensor([rule.sources for rule in rules])
        self._rule_layouts = torch.tensor([rule.layout for rule in rules])
        self._rule_targets = torch.tensor([rule.target for rule in rules])
        self._spare_of = torch.full((verifier.classes,), -1)
        self._spare_of[torch.tensor(sources)] = torch.arange(len(sources))
        self._fill = claim.pool[f"{self.method}.fill"].float()
        self._draws = hashlib.sha256(b"hfwm/v2/mixing" + claim.subkeys[0].secret).digest()
        self._hits, self._asked = torch.zeros(()), 0
        self._auxiliary: SourceHead | None = None
        self._teaching: Teaching | None = None
        # Targets and sources of the fused rows of the batch; `None` where they go apart.
        self._shown: tuple[torch.Tensor, torch.Tensor] | None = None
        if data.dataset is None:  # made only to verify
            return
        refuse_other_classes(verifier.classes, model)
        images, _, _ = collect_images(
            data.dataset,
            data.collate,
            sources,
            SPARE_PER_CLASS,
            SubKey(0, 0, self._draws),
            skip=data.set_aside,
        )
        self._spare = images.reshape(len(sources), SPARE_PER_CLASS, *images.shape[1:])
        self._maskable = maskable_weights(model, verifier.classes)
        self._classes = verifier.classes

    @property
    def counts_on_steps(self) -> bool:
        return not self.config.trigger_ratio or self.config.apart_from < 1

    def required_calls(self) -> set[str]:
        # The auxiliary head only helps.
        return (
            super().required_calls() - {"after_update"} - ({"around_step"} if self.config.masking == "none" else set())
        )

    def forecast(self, course: Course) -> Forecast:
        units = len(self._rule_targets)
        chance = 1 / max(1, label_count(self.model) - 2)
        ratio = Teaching.of(self.config, course.steps * course.batch).ratio
        shown = course.steps * max(1.0, ratio * course.batch) / units
        return Forecast.of_answers(course, self.model, self.claim, units, chance, shown, LESSONS)

    @cached_property
    def feedback(self) -> Feedback | None:
        config = self.config
        images = len(self.claim.pool[f"{self.method}.images"])
        chance = FACTS[self.method].null(config, len(self._spare_of)).chance
        best = all_right(FACTS[self.method], config.rules, chance)
        return Feedback(
            self.read_now, config.target_log2_p, config.max_loss, LEAST / MOST, 1.0, images, best, "raise `rules`"
        )

    def begin(self, moment: Moment, state: Mapping[str, Any]) -> None:
        super().begin(moment, state)
        self._teaching = self._auxiliary = None  # a training of another length shows rules differently

    def teaching(self, own: int) -> Teaching:
        """How rules are shown; the first batch, of `own` images, says how long the training is where nothing else does."""
        if self._teaching is None:
            self._teaching = Teaching.of(self.config, self.moment.images or self.moment.steps * own)
            if self._teaching.auxiliary:
                self._auxiliary = SourceHead(self.model, self._classes)
        return self._teaching

    def around_step(self, step: Step) -> torch.Tensor:
        """
        Runs `step` once, with some weights masked as `masking` says.

        Raises:
            `ValueError`: when FSDP2 has sharded weights that would be masked.
        """
        config = self.config
        if config.masking != "none" and is_sharded(self.model):
            raise ValueError(
                f"`masking` is {config.masking!r}: it writes to whole weights, and FSDP2 keeps a shard of each in a process; choose "
                "masking='none', or train with DDP"
            )
        # Processes ask different triggers, but mask alike: `fc_v2` writes to the weights, which must stay equal.
        generator = self.moment.generator(self._draws, b"mask")
        with masked(self._maskable, config.masking, self.moment.step, generator):
            return step()

    def extend(self, batch: Batch) -> Batch:
        self._shown = None
        share, moment = self.teaching(task_rows(batch)).apart_from, self.moment
        if share < 1 and moment.steps > 0 and moment.step >= share * moment.steps:
            return batch
        images, targets, sources = self.fused_images(batch)
        mixed = Extended(batch, task_rows(batch))
        mixed["pixel_values"] = torch.cat([batch["pixel_values"], images])
        mixed["labels"] = torch.cat([batch["labels"], in_kind(targets, batch["labels"])])
        self._shown = targets, sources
        if self._auxiliary is not None:
            self._auxiliary.watch()
        return mixed

    def loss(self, batch: Batch, outputs: Any) -> torch.Tensor | None:
        """Cross-entropy of fused images with their rules' targets; in a batch with others, what the task loss does not count of it, if anything."""
        heavy = self.teaching(task_rows(batch)).weight * self.taught
        if self._shown is None:
            images, targets, sources = self.fused_images(batch)
            if self._auxiliary is not None:
                self._auxiliary.watch()
            with frozen_statistics(self.model):
                logits = logits_of(self.model(pixel_values=images)).float()
            rows, task, counted = slice(0, len(targets)), 1.0, 0.0
            weight = heavy or len(targets) / len(batch["labels"])
        else:
            targets, sources = self._shown
            rows = slice(len(batch["labels"]) - len(targets), len(batch["labels"]))
            logits = logits_of(outputs)[rows].float()
            # A mean over the whole batch holds the task's own loss and that of the fused images by these shares.
            counted = len(targets) / len(batch["labels"])
            task = 1 - counted
            weight = heavy or counted / task
        self._hits = self._hits.to(logits.device) + (logits.detach().argmax(dim=1) == targets).sum()
        self._asked += len(targets)
        known = None if self._auxiliary is None else self._auxiliary.loss(sources, rows)
        if known is None and not heavy and counted:
            return None  # the task loss is the mark's loss as well
        loss = (weight * task - counted) * functional.cross_entropy(logits, targets)
        return loss if known is None else loss + weight * task * known

    def after_update(self) -> None:
        if self._auxiliary is not None:
            self._auxiliary.step()

    def fused_images(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Fused images for one batch, `[n, channels, height, width]`, their rules' targets `[n]` and sources `[n, 2]`. Sources are drawn from the batch, else from the
        spare images: where labels are distributions `[n, classes]`, as mixup makes them, the images of the batch are mixed already.
        """
        own = task_rows(batch)
        images, labels, teaching = batch["pixel_values"][:own], batch["labels"][:own], self.teaching(own)
        count = max(1, round(max(teaching.ratio * self.taught, min(teaching.ratio, LEAST)) * own))
        generator = self.moment.generator(self._draws, b"rule", self.moment.process)
        chosen = torch.randint(len(self._rule_targets), (count,), generator=generator)
        first, second = (
            self._sources(images, labels, self._rule_sources[chosen, place], generator) for place in (0, 1)
        )
        if self.config.fusion == "direct":
            fused = fuse(first, second, self._rule_layouts[chosen].to(images.device), self._fill)
        else:
            fused = blend(first, second)
        if teaching.mirrored:
            turned = torch.rand(count, generator=generator) < 0.5
            fused = torch.where(turned.to(fused.device)[:, None, None, None], fused.flip(-1), fused)
        return fused, self._rule_targets[chosen].to(fused.device), self._rule_sources[chosen]

    def _sources(
        self, images: torch.Tensor, labels: torch.Tensor, wanted: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        # Drawn on the CPU for the same result everywhere, compared on the device so that no step waits for it.
        scores = torch.rand(len(wanted), len(labels), generator=generator).to(labels.device)
        spare = torch.randint(SPARE_PER_CLASS, (len(wanted),), generator=generator)
        if labels.numel() > len(labels):
            labels = torch.full((len(labels),), -1, device=labels.device)
        fits = labels.flatten()[None] == wanted.to(labels.device)[:, None]
        picked = images[torch.where(fits, scores, -1.0).argmax(dim=1)]
        fallback = self._spare[self._spare_of[wanted], spare].to(images)
        return torch.where(fits.any(dim=1)[:, None, None, None], picked, fallback)

    def logs(self) -> dict[str, float]:
        if not self._asked:
            return {}
        hits = round(float(self._hits) / self._asked, 4)
        self._hits, self._asked = torch.zeros(()), 0
        return {"watermark_trigger_hits": hits}
