"""Asks a suspect fresh fused images and tests its answers by exact relabelling."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...evidence import Access, Evidence, single
from ...keys import Claim, SubKey
from ...statistics import log2_relabel_tail
from ...suspects import Suspect
from ...triggers import LAYOUTS, Rule, blend, draw_questions, draw_rules, fuse, with_targets
from ...verifier import Verifier
from .config import FunctionCoupledConfig


NULL = "targets are drawn by the key, uniform over the classes that are no source: exact relabel law given the suspect's answers"


@dataclass(frozen=True)
class Answers:
    """Rules asked and top-1 labels `[rules, images_per_rule]`; -1 where the suspect gave none."""

    rules: list[Rule]
    labels: torch.Tensor


class FunctionCoupledVerifier(Verifier[Answers]):
    """Black-box verifier of [`FunctionCoupledTrainer`]'s mark; needs top-1 labels only."""

    method: ClassVar[str] = "function_coupled"
    access = Access.LABELS
    config_class = FunctionCoupledConfig

    def __init__(self, claim: Claim):
        super().__init__(claim)
        self.classes: int = self.layout["classes"]

    def rules(self, subkey: SubKey) -> list[Rule]:
        return draw_rules(
            subkey,
            self.config.rules,
            self.layout["source_classes"],
            self.classes,
            LAYOUTS if self.config.fusion == "direct" else 1,
            len(self.claim.assignment.subkeys),
        )

    def triggers(self, subkey: SubKey, rules: list[Rule]) -> torch.Tensor:
        """Fresh fused images `[rules x images_per_rule, channels, height, width]`, made of pool images that were never trained on."""
        pool = {name.removeprefix(f"{self.method}."): tensor for name, tensor in self.claim.pool.items()}
        questions = draw_questions(subkey, rules, pool["labels"].numpy(), self.config.images_per_rule)
        pairs = torch.from_numpy(questions).flatten(0, 1)
        first, second = pool["images"][pairs[:, 0]].float(), pool["images"][pairs[:, 1]].float()
        if self.config.fusion == "invisible":
            return blend(first, second)
        layouts = torch.tensor([rule.layout for rule in rules]).repeat_interleave(self.config.images_per_rule)
        return fuse(first, second, layouts, pool["fill"].float())

    def observe(self, suspect: Suspect, subkey: SubKey) -> Answers:
        rules = self.rules(subkey)
        labels = suspect.labels(self.triggers(subkey, rules), self.classes)
        return Answers(rules, labels.reshape(len(rules), -1))

    def score(self, observation: Answers, subkey: SubKey) -> Evidence:
        # The questions stay; only the label stream is read. A decoy therefore costs no query.
        rules = with_targets(subkey, observation.rules, self.classes)
        answers = observation.labels.tolist()
        log2_p, matches = log2_relabel_tail(
            answers, [rule.candidates(self.classes) for rule in rules], [rule.target for rule in rules]
        )
        survived = sum(row.count(rule.target) > len(row) / 2 for row, rule in zip(answers, rules, strict=True))
        return single(
            self.method,
            matches,
            observation.labels.numel(),
            log2_p,
            NULL,
            self.access,
            details={"rules": len(rules), "rules_held": survived, "queries": observation.labels.numel()},
        )
