"""Asks a suspect for its probabilities on the pool's images and tests the key's signs against them."""

from dataclasses import dataclass

import numpy as np
import torch

from ...evidence import LEVEL_B, Access, Check, Evidence, single
from ...keys import Claim, SubKey
from ...serialization import InvalidInput
from ...statistics import log2_e_rademacher, log2_rademacher_tail
from ...suspects import Suspect
from ...training.triggers import check_images, pool_tensors, read_classes, read_source_classes
from ...verification.verifier import SequentialTest, Verifier, digest_of
from .code import Template, draw_signs
from .config import CSPConfig, SoftLabelConfig, USPConfig
from .facts import free_signs
from .features import ImageFeatures, feature_count
from .readout import contrasts, unit_sums, without


NULL = "signs are drawn by the key: Rademacher sum given the suspect's answers, Chernoff bound; one unit per sign, however many images"


@dataclass(frozen=True)
class Readings:
    """
    What a suspect's answers say about each sign that a key could have drawn.

    Args:
        sums (`np.ndarray`):
            `[features, classes]`: how the contrasts of each class go with each feature; no sign was used.
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
    needs_pool = True

    def __init__(self, claim: Claim):
        super().__init__(claim)
        self.classes = read_classes(self.layout, 10**5)
        self.sources = read_source_classes(self.layout, self.classes, least=1)
        self.images, self.reference = read_pool(self.method, claim.pool, self.sources, self.classes)
        refuse_too_few_signs(self.config, self.classes, self.images.shape[1])
        self.features = ImageFeatures.fit(self.images, self.config.features)
        self.values = self.features(self.images)

    def template(self) -> Template:
        """What all disclosed sub-keys together add to the log-probabilities."""
        return Template.of(self.features, list(self.claim.subkeys), self.classes)

    def observe(self, suspect: Suspect, subkey: SubKey, check: Check = Check()) -> Readings:
        return self.read(suspect.probabilities(self.images, self.classes))

    def read(self, probabilities: torch.Tensor, rows: torch.Tensor | slice = slice(None)) -> Readings:
        """
        Readings of answers `[n, classes]` to the pool's images `rows`, each under the class that the suspect itself puts first. They are the
        same for every key with this pool.
        """
        top, features = probabilities.nan_to_num(0.0).argmax(dim=1), self.values[rows]
        values = contrasts(probabilities, top)
        sums = unit_sums(values, top, features)
        natural = unit_sums(contrasts(self.reference[rows], top), top, features)
        return Readings(without(sums, natural), len(top), int((values != 0).any(dim=1).sum()))

    def fingerprint(self, observation: Readings) -> bytes:
        return digest_of(observation.sums)

    def signs(self, subkey: SubKey) -> np.ndarray:
        """The key's signs as +-1, `[features, classes]`."""
        return draw_signs(subkey, len(self.features.mean), self.classes).double().numpy()

    def sequential(self, subkey: SubKey, most: int | None) -> SequentialTest:
        from .sequential import SignTest

        return SignTest(self, subkey, most)

    def score(self, observation: Readings, subkey: SubKey) -> Evidence:
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
    """Verifier of [`USPTrainer`]'s mark; see [`USPConfig`]."""

    config_class = USPConfig


class CSPVerifier(SoftLabelVerifier):
    """Verifier of [`CSPTrainer`]'s mark and of answers that [`PerturbedOutputModelForImageClassification`] gave; see [`CSPConfig`]."""

    config_class = CSPConfig


def read_pool(
    method: str, pool: dict[str, torch.Tensor], sources: list[int], classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `[n, channels, height, width]` and the reference's probabilities `[n, classes]` of a pool that may come from a stranger."""
    found = pool_tensors(method, pool, ("images", "labels", "reference"))
    images, labels, reference = found["images"], found["labels"], found["reference"]
    check_images(method, images, labels)
    # Labels first: counting those of a stranger would take as much memory as he wishes.
    if set(labels.tolist()) != set(sources) or torch.bincount(labels)[sources].min() < 2:
        raise InvalidInput(f"the pool of `{method}` needs two or more images of each marked class and no others")
    if reference.shape != (len(images), classes):
        raise InvalidInput(f"the pool of `{method}` needs `reference`: log-probabilities of each image and class")
    return images.detach().float(), reference.detach().double().softmax(dim=1)


def refuse_too_few_signs(config: SoftLabelConfig, classes: int, channels: int) -> None:
    """The signs must be able to reach level B if all of them survive, else they are useless."""
    most = feature_count(config.features, channels) * free_signs(classes)
    if most < -LEVEL_B:
        raise InvalidInput(
            f"{classes} classes with `features` = {config.features} can give at most {most} bits, a claim needs {-LEVEL_B:.0f}; raise "
            "`features`, or use a white-box method (two classes have no small probabilities to perturb)"
        )
