"""Asks a suspect fresh fused images and tests its answers by exact relabelling."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ...evidence import LEVEL_B, Access, Check, Evidence, single
from ...keys import Claim, SubKey
from ...serialization import InvalidInput
from ...statistics import LabelLaw, log2_e_relabel, log2_p_from_log2_e
from ...suspects import Suspect
from ...training.triggers import (
    LAYOUTS,
    Rule,
    blend,
    check_images,
    draw_questions,
    draw_rules,
    fuse,
    pool_tensors,
    read_classes,
    read_source_classes,
    rule_capacity,
    with_targets,
)
from ...verification.verifier import SequentialTest, Verifier, digest_of, said_alike, steps
from .config import FunctionCoupledConfig


NULL = "targets are drawn by the key, uniform over the classes that are no source: exact relabel law given the suspect's answers"
SEQUENTIAL = "targets are drawn by the key: relabel e-value per rule, multiplied; p <= 1/E wherever the test stops"


@dataclass(frozen=True)
class Answers:
    """
    What a suspect said to one sub-key's questions, and what follows from that alone.

    Args:
        rules (`list[Rule]`):
            The rules asked.
        labels (`torch.Tensor`):
            Top-1 labels `[rules, images_per_rule]`; -1 where the suspect gave none.
        counts (`np.ndarray`):
            `[rules, candidates]`: answers that equal each label that the key could have drawn.
        law ([`~statistics.LabelLaw`]):
            Exact null law of the matches.
    """

    rules: list[Rule]
    labels: torch.Tensor
    counts: np.ndarray
    law: LabelLaw


class FunctionCoupledVerifier(Verifier[Answers]):
    """Black-box verifier of [`FunctionCoupledTrainer`]'s mark; needs top-1 labels only. See [`FunctionCoupledConfig`]."""

    access = Access.LABELS
    config_class = FunctionCoupledConfig
    needs_pool = True

    def __init__(self, claim: Claim):
        super().__init__(claim)
        self.classes = read_classes(self.layout)
        self.source_classes = read_source_classes(self.layout, self.classes, least=2)
        refuse_too_few_classes(self.config, self.classes, len(self.source_classes))
        self.pool = read_pool(self.method, claim.pool, self.config, self.source_classes)

    def rules(self, subkey: SubKey) -> list[Rule]:
        """The rules that a sub-key draws, in the order of asking."""
        return draw_rules(
            subkey,
            self.config.rules,
            self.source_classes,
            self.classes,
            LAYOUTS if self.config.fusion == "direct" else 1,
            len(self.claim.assignment.subkeys),
        )

    def triggers(self, subkey: SubKey, rules: list[Rule]) -> torch.Tensor:
        """Fresh fused images `[rules x images_per_rule, channels, height, width]`, made of pool images that were never trained on."""
        pool = self.pool
        questions = draw_questions(subkey, rules, pool["labels"].numpy(), self.config.images_per_rule)
        pairs = torch.from_numpy(questions).flatten(0, 1)
        first, second = pool["images"][pairs[:, 0]].float(), pool["images"][pairs[:, 1]].float()
        if self.config.fusion == "invisible":
            return blend(first, second)
        layouts = torch.tensor([rule.layout for rule in rules]).repeat_interleave(self.config.images_per_rule)
        return fuse(first, second, layouts, pool["fill"].float())

    def observe(self, suspect: Suspect, subkey: SubKey, check: Check = Check()) -> Answers:
        rules = self.rules(subkey)
        labels = suspect.labels(self.triggers(subkey, rules), self.classes)
        labels = labels.reshape(len(rules), -1)
        candidates = np.array([rule.candidates(self.classes) for rule in rules])
        counts = (labels.numpy()[:, :, None] == candidates[:, None, :]).sum(axis=1)
        return Answers(rules, labels, counts, LabelLaw(counts.tolist()))

    def fingerprint(self, observation: Answers) -> bytes:
        return digest_of(observation.labels)

    def sequential(self, subkey: SubKey, most: int | None) -> "RuleTest":
        return RuleTest(self, subkey, most)

    def score(self, observation: Answers, subkey: SubKey) -> Evidence:
        # The questions stay; only the label stream is read. A decoy therefore costs no query.
        rules = with_targets(subkey, observation.rules, self.classes)
        places = [rule.candidates(self.classes).index(rule.target) for rule in rules]
        hits = observation.counts[np.arange(len(rules)), places]
        matches = int(hits.sum())
        return single(
            self.method,
            matches,
            observation.labels.numel(),
            observation.law.log2_tail(matches),
            NULL,
            self.access,
            details={
                "rules": len(rules),
                "rules_held": int((hits > self.config.images_per_rule / 2).sum()),
                "queries": observation.labels.numel(),
            },
            warnings=said_alike(observation.labels),
        )


class RuleTest(SequentialTest):
    """One sub-key's rules, asked one after the other; all images of a rule belong together, because its target is drawn once."""

    access = Access.LABELS

    def __init__(self, verifier: FunctionCoupledVerifier, subkey: SubKey, most: int | None):
        self.classes, self.per_rule = verifier.classes, verifier.config.images_per_rule
        self.rules = verifier.rules(subkey)
        self.whole = len(self.rules) * self.per_rule
        affordable = len(self.rules) if most is None else min(len(self.rules), most // self.per_rule)
        self.images = verifier.triggers(subkey, self.rules)[: affordable * self.per_rule]
        self.stops = steps(len(self.images), self.per_rule)
        self.candidates = np.array([rule.candidates(self.classes) for rule in self.rules])
        self.counts = np.zeros((0, self.candidates.shape[1]), dtype=int)

    def update(self, answers: torch.Tensor) -> None:
        labels = answers.reshape(-1, self.per_rule).numpy()
        self.counts = (labels[:, :, None] == self.candidates[: len(labels), None, :]).sum(axis=1)

    def score(self, subkey: SubKey) -> Evidence:
        rules = with_targets(subkey, self.rules, self.classes)[: len(self.counts)]
        places = [rule.candidates(self.classes).index(rule.target) for rule in rules]
        hits = self.counts[np.arange(len(rules)), places]
        log2_e = log2_e_relabel(self.counts, hits)
        return single(
            FunctionCoupledVerifier.method,
            int(hits.sum()),
            len(rules) * self.per_rule,
            log2_p_from_log2_e(log2_e),
            SEQUENTIAL,
            self.access,
            log2_e=log2_e,
            details={"rules": len(rules), "rules_held": int((hits > self.per_rule / 2).sum())},
        )

    def best(self, answers: int) -> float:
        counts = np.zeros((answers // self.per_rule, self.candidates.shape[1]))
        counts[:, 0] = self.per_rule
        return log2_e_relabel(counts, counts[:, 0])


# A table of candidates has an entry for each rule and class: 183 rules on 21,841 classes. A rule draws from all pairs of its classes' images.
MOST_CANDIDATES, MOST_IMAGES_PER_CLASS = 4 * 10**6, 2000


def read_pool(
    method: str, pool: dict[str, torch.Tensor], config: FunctionCoupledConfig, sources: list[int]
) -> dict[str, torch.Tensor]:
    """
    Images, labels and blank colour of a pool that may come from a stranger.

    Raises:
        [`~serialization.InvalidInput`]: when it is malformed, or when a pair of source classes has too few images for its questions.
    """
    found = pool_tensors(method, pool, ("images", "labels", "fill"))
    images, labels, fill = found["images"], found["labels"], found["fill"]
    check_images(method, images, labels)
    if min(images.shape[2:]) < 2 or fill.shape != images.shape[1:2]:
        raise InvalidInput(
            f"the pool of `{method}` needs images of two pixels a side or more, and `fill` with a value per channel"
        )
    # Labels first: counting those of a stranger would take as much memory as he wishes.
    sizes = sorted(torch.bincount(labels)[sources].tolist()) if set(labels.tolist()) == set(sources) else [0, 0]
    if sizes[-1] > MOST_IMAGES_PER_CLASS:
        raise InvalidInput(
            f"the pool of `{method}` has {sizes[-1]} images of one class, at most {MOST_IMAGES_PER_CLASS} can be paired"
        )
    fewest = sizes[:2]
    if fewest[0] * fewest[1] < config.images_per_rule:
        raise InvalidInput(
            f"the pool of `{method}` needs images of each source class and no others, {config.images_per_rule} pairs of any two classes"
        )
    return found


def refuse_too_few_classes(config: FunctionCoupledConfig, classes: int, sources: int) -> None:
    """The rules must be able to reach level B even if every one of them survives, else they are useless."""
    capacity = rule_capacity(sources, LAYOUTS if config.fusion == "direct" else 1, config.subkeys)
    if config.rules > capacity:
        raise InvalidInput(
            f"`rules` is {config.rules}: {classes} classes hold only {capacity} different rules per sub-key with {config.fusion} "
            f"fusion; lower `rules` or `subkeys`, or use a white-box method"
        )
    if config.rules * classes > MOST_CANDIDATES:
        raise InvalidInput(
            f"`rules` is {config.rules}: with {classes} classes at most {MOST_CANDIDATES // classes} rules can be tested"
        )
    most = config.rules * math.log2(classes - 2) if classes > 2 else 0.0
    if most < -LEVEL_B:
        raise InvalidInput(
            f"{config.rules} rules over {classes} classes can give at most {most:.0f} bits, a claim needs {-LEVEL_B:.0f}; "
            "raise `rules`, or use a white-box method"
        )
