"""Asks a suspect for its probabilities on the pool's images and tests the key's signs against them."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ...evidence import LEVEL_B, Access, Evidence, single
from ...keys import Claim, SubKey
from ...serialization import InvalidInput
from ...statistics import log2_e_rademacher, log2_rademacher_tail
from ...suspects import Suspect
from ...verifier import SequentialTest, Verifier
from .code import SignCode, draw_signs
from .config import CSPConfig, SoftLabelConfig, USPConfig
from .readout import centred, contrasts, unit_sums


NULL = "signs are drawn by the key: Rademacher sum given the suspect's answers, Chernoff bound; one unit per sign, however often asked"


@dataclass(frozen=True)
class Readings:
    """
    What a suspect's answers say about each sign that a key could have drawn.

    Args:
        sums (`np.ndarray`):
            `[classes, buckets, classes]`: contrasts summed over the queries of each unit; no sign was used.
        queries (`int`):
            Images asked.
        usable (`int`):
            Answers that said anything about the small probabilities.
    """

    sums: np.ndarray
    queries: int
    usable: int


class SoftLabelVerifier(Verifier[Readings]):
    """Black-box verifier of [`USPTrainer`]'s and [`CSPTrainer`]'s marks; needs probabilities, with labels only it cannot decide."""

    access = Access.PROBABILITIES
    config: SoftLabelConfig

    def __init__(self, claim: Claim):
        super().__init__(claim)
        self.classes, self.sources = read_layout(self.layout)
        refuse_too_few_signs(self.config, self.classes, len(self.sources))
        self.images, self.labels = read_pool(self.method, claim.pool, self.sources)

    def code(self, subkey: SubKey) -> SignCode:
        """The sub-key's signs and its split into buckets."""
        return SignCode.draw(subkey, self.classes, self.sources, self.config.buckets, self.images, self.labels)

    def observe(self, suspect: Suspect, subkey: SubKey) -> Readings:
        return self.read(suspect.probabilities(self.images, self.classes), subkey)

    def read(self, probabilities: torch.Tensor, subkey: SubKey, rows: torch.Tensor | slice = slice(None)) -> Readings:
        """Readings of answers `[n, classes]` to the pool's images `rows`, each under the class that the suspect itself puts first."""
        images = self.images[rows]
        top = probabilities.nan_to_num(0.0).argmax(dim=1)
        values = contrasts(probabilities, top)
        buckets = self.code(subkey).buckets_of(images, top)
        sums = unit_sums(centred(values, top), top, buckets, self.config.buckets)
        return Readings(sums, len(images), int((values != 0).any(dim=1).sum()))

    def signs(self, subkey: SubKey) -> np.ndarray:
        return draw_signs(subkey, self.classes, self.sources, self.config.buckets).double().numpy()

    def sequential(self, subkey: SubKey, most: int | None) -> SequentialTest:
        from .sequential import SignTest

        return SignTest(self, subkey, most)

    def score(self, observation: Readings, subkey: SubKey) -> Evidence:
        # The split stays, only the signs are read: a decoy costs no query.
        signed = observation.sums * self.signs(subkey)
        total, units = float(signed.sum()), signed[signed != 0]
        return single(
            self.method,
            int((units > 0).sum()),
            len(units),
            log2_rademacher_tail(total, units),
            NULL,
            self.access,
            log2_e=log2_e_rademacher(total, units),
            details={"units": len(units), "queries": observation.queries, "usable_answers": observation.usable},
        )


class USPVerifier(SoftLabelVerifier):
    """Verifier of [`USPTrainer`]'s mark."""

    method: ClassVar[str] = "usp"
    config_class = USPConfig


class CSPVerifier(SoftLabelVerifier):
    """Verifier of [`CSPTrainer`]'s mark and of answers that [`PerturbedOutputModelForImageClassification`] gave."""

    method: ClassVar[str] = "csp"
    config_class = CSPConfig


def read_layout(layout: dict[str, Any]) -> tuple[int, list[int]]:
    """Number of classes and marked classes of a layout that may come from a stranger; [`~serialization.InvalidInput`] if malformed."""
    classes, sources = layout.get("classes"), layout.get("source_classes")
    if type(classes) is not int or not 2 <= classes <= 10**5:
        raise InvalidInput(f"layout: `classes` is {classes!r}, expected 2 to 100000")
    if not isinstance(sources, list) or not all(type(label) is int and 0 <= label < classes for label in sources):
        raise InvalidInput("layout: `source_classes` must be a list of labels")
    if not 1 <= len(set(sources)) == len(sources) <= 1000:
        raise InvalidInput(f"layout: `source_classes` holds {len(sources)} labels, expected 1 to 1000 different ones")
    return classes, sources


def read_pool(method: str, pool: dict[str, torch.Tensor], sources: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `[n, channels, height, width]` and labels `[n]` of a pool that may come from a stranger."""
    images, labels = pool.get(f"{method}.images"), pool.get(f"{method}.labels")
    if images is None or labels is None or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise InvalidInput(
            f"the pool of `{method}` holds no images with their labels; give the key folder's {method} pool"
        )
    counts = torch.bincount(labels.long().clamp(min=0), minlength=max(sources) + 1)
    if set(labels.tolist()) != set(sources) or counts[sources].min() < 2:
        raise InvalidInput(f"the pool of `{method}` needs two or more images of each marked class and no others")
    return images.float(), labels.long()


def refuse_too_few_signs(config: SoftLabelConfig, classes: int, sources: int) -> None:
    """The signs must be able to reach level B if all of them survive, else they are useless."""
    # Only differences between the other classes can be seen: one sign in each group is not free.
    most = sources * config.buckets * (classes - 2)
    if most < -LEVEL_B:
        raise InvalidInput(
            f"{classes} classes with {config.buckets} buckets can give at most {most} bits, a claim needs {-LEVEL_B:.0f}; raise "
            "`buckets`, or use a white-box method (two classes have no small probabilities to perturb)"
        )
