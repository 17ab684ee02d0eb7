"""Asks a suspect the key's triggers, plain and, where its weights are at hand, under parameter noise; both nulls are exact."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...backbones import FoldedNet
from ...evidence import LEVEL_B, Access, Check, Evidence, single
from ...keys import Claim, SubKey
from ...serialization import InvalidInput
from ...statistics import (
    charge_looks,
    log2_binomial_tail,
    log2_e_beta_mixture,
    log2_p_from_log2_e,
    order_statistic_above,
)
from ...suspects import AccessError, Suspect
from ...training.triggers import check_images, draw_labels, pool_tensors, read_classes, render_triggers
from ...training.triggers.families import GLYPH_HEIGHT, GLYPH_WIDTH
from ...verification.verifier import SequentialTest, Verifier, digest_of, said_alike, steps
from .config import CertifiedConfig
from .noise import NoisyNets, clean_weights, noise_seeds, read_scales


# Share of one per cent in which the suspect's measured median may come out below its true one (the other half is the owner's).
SUSPECT_ALPHA = 0.005
PLAIN = "labels are drawn by the key, uniform over the classes other than the source's: Bin(answers that are no source label, 1/candidates)"
SMOOTHED = "the same law in every noise draw; P(median over draws >= t) <= D / (D - k + 1) P(Bin >= t) (Markov)"
SEQUENTIAL = "labels are drawn by the key: beta-mixture e-value of answers that are no source label; p <= 1/E wherever the test stops"
NO_EVIDENCE = (
    "one label for all triggers (preset `paper`): no null is known, so this mark can be compared but gives no evidence"
)


@dataclass(frozen=True)
class Answers:
    """
    What a suspect said to one sub-key's triggers.

    Args:
        sources (`np.ndarray`):
            Class of every trigger's source, `[n]`; -1 where it has none.
        plain (`np.ndarray`):
            Top-1 labels `[n]`.
        noisy (`np.ndarray`, *optional*):
            Top-1 labels `[draws, n]` under parameter noise.
        warnings (`list[str]`):
            Why there are no noisy answers, if that is unexpected.
    """

    sources: np.ndarray
    plain: np.ndarray
    noisy: np.ndarray | None
    warnings: list[str] = field(default_factory=list)


class CertifiedVerifier(Verifier[Answers]):
    """
    Verifier of [`CertifiedTrainer`]'s mark. Labels are enough for the plain test; with the weights of the owner's architecture the
    smoothed test, which the certificate speaks of, is run as well, and the better of the two counts at the price of one bit. See
    [`CertifiedConfig`].
    """

    access = Access.LABELS
    config_class = CertifiedConfig
    needs_pool = True
    reads_coordinates = True  # parameter noise has them

    def __init__(self, claim: Claim):
        super().__init__(claim)
        self.classes = read_classes(self.layout)
        self.scales = read_scales(self.layout)
        refuse_too_few(self.config, self.classes)
        self.pool = read_pool(self.method, claim, self.config, self.classes)
        # Labels are drawn from all classes where no source is known, else from those that the source is not; the pool has one kind only.
        self.candidates = self.classes - int(self.config.family != "unrelated")

    def triggers(self, subkey: SubKey) -> torch.Tensor:
        """The sub-key's triggers `[n, channels, height, width]`; the same for every draw and every suspect."""
        pool = self._pool(subkey)
        return render_triggers(subkey, self.config.family, pool["images"].float(), *pool["range"].float())

    def sources(self, subkey: SubKey) -> np.ndarray:
        """Class of each trigger's source image, `[n]`; -1 where it has none."""
        return self._pool(subkey)["labels"].numpy()

    def labels(self, subkey: SubKey) -> np.ndarray:
        """The label that the marked model gives to each trigger, `[n]`."""
        drawn = draw_labels(subkey, self.sources(subkey).tolist(), self.classes)
        return drawn if self.config.labels == "per_image" else np.full_like(drawn, drawn[0])

    def spread(self) -> dict[str, float]:
        """Standard deviation of the noise per tensor."""
        return {name: self.config.sigma * scale for name, scale in self.scales.items()}

    def _pool(self, subkey: SubKey) -> dict[str, torch.Tensor]:
        own = slice(subkey.slot * self.config.triggers, (subkey.slot + 1) * self.config.triggers)
        return {"images": self.pool["images"][own], "labels": self.pool["labels"][own], "range": self.pool["range"]}

    def folded(self, model: torch.nn.Module) -> FoldedNet:
        """
        The model as a function of its folded weights, which are what the noise moves.

        Raises:
            [`~serialization.InvalidInput`]: when the model is not of the owner's architecture.
        """
        images = self.pool["images"][:2].float()
        net = FoldedNet(model, images, fold=self.config.moves == "all")
        names = set(net.coordinates(model))
        if names != set(self.scales):
            strange = sorted(names ^ set(self.scales))
            raise InvalidInput(
                f"not the owner's architecture: {len(strange)} tensors differ from the certified ones, first {strange[0]!r}"
            )
        return net

    def observe(self, suspect: Suspect, subkey: SubKey, check: Check = Check()) -> Answers:
        images = self.triggers(subkey)
        plain = suspect.labels(images, self.classes).numpy()
        try:
            model = copy.deepcopy(suspect.module()).float()
            net = self.folded(model)
        except AccessError:
            return Answers(self.sources(subkey), plain, None)
        except InvalidInput as error:
            return Answers(self.sources(subkey), plain, None, [f"the smoothed test was left out: {error}"])
        nets = NoisyNets(net, clean_weights(net, model), self.spread(), self.config.precision)
        noisy = np.stack(list(nets.answers(noise_seeds(subkey, self.config.suspect_draws), images)))
        return Answers(self.sources(subkey), plain, noisy)

    def fingerprint(self, observation: Answers) -> bytes:
        noisy = observation.noisy
        return digest_of(observation.plain, *([] if noisy is None else [noisy]))

    def sequential(self, subkey: SubKey, most: int | None) -> "TriggerTest | None":
        return None if self.config.labels == "one" else TriggerTest(self, subkey, most)

    def score(self, observation: Answers, subkey: SubKey) -> Evidence:
        labels, trials = self.labels(subkey), len(observation.plain)
        candidates = self.candidates
        # An answer that equals its source's label could not have matched whatever the key had drawn.
        usable = int((observation.plain != observation.sources).sum())
        matches = int((observation.plain == labels).sum())
        one_label = self.config.labels == "one"
        log2_p = 0.0 if one_label else log2_binomial_tail(matches, usable, 1 / candidates)
        null = NO_EVIDENCE if one_label else PLAIN
        details: dict[str, Any] = {"triggers": trials, "plain_matches": matches, "plain_log2_p": round(log2_p, 2)}
        if observation.noisy is not None:
            counts = (observation.noisy == labels).sum(axis=1)
            smoothed = smoothed_median(counts)
            smoothed_log2_p = 0.0 if one_label else smoothed_log2_tail(smoothed, trials, candidates, len(counts))
            details |= {
                "noise_draws": len(counts),
                "smoothed_matches": smoothed,
                "smoothed_log2_p": round(smoothed_log2_p, 2),
            }
            if smoothed_log2_p < log2_p:
                matches, log2_p, null = smoothed, smoothed_log2_p, SMOOTHED
            log2_p = charge_looks(log2_p, 2)
        warnings = (
            observation.warnings + [NO_EVIDENCE] * one_label + ([] if one_label else said_alike(observation.plain))
        )
        return single(self.method, matches, trials, log2_p, null, self.access, details=details, warnings=warnings)


class TriggerTest(SequentialTest):
    """One sub-key's triggers in the order of its stream `order`; the plain test only, which labels are enough for."""

    access = Access.LABELS
    # A few at a time, as endpoints are asked; looking is free.
    step = 4

    def __init__(self, verifier: CertifiedVerifier, subkey: SubKey, most: int | None):
        self.verifier, self.classes = verifier, verifier.classes
        images = verifier.triggers(subkey)
        self.whole = len(images)
        self.order = subkey.stream("order").permutations(1, self.whole)[0][:most]
        self.images, self.sources = images[self.order], verifier.sources(subkey)[self.order]
        self.stops = steps(len(self.images), self.step)
        self.candidates = verifier.candidates
        self.labels = np.zeros(0, dtype=int)

    def update(self, answers: torch.Tensor) -> None:
        self.labels = answers.numpy()

    def score(self, subkey: SubKey) -> Evidence:
        asked = len(self.labels)
        wanted = self.verifier.labels(subkey)[self.order[:asked]]
        # An answer that equals its source's label could not have matched, so it is no trial.
        usable = int((self.labels != self.sources[:asked]).sum())
        matches = int((self.labels == wanted).sum())
        log2_e = log2_e_beta_mixture(matches, usable, 1 / self.candidates)
        return single(
            CertifiedVerifier.method,
            matches,
            asked,
            log2_p_from_log2_e(log2_e),
            SEQUENTIAL,
            self.access,
            log2_e=log2_e,
            details={"triggers": asked, "usable_answers": usable},
        )

    def best(self, answers: int) -> float:
        return log2_e_beta_mixture(answers, answers, 1 / self.candidates)


def smoothed_median(counts: np.ndarray) -> int:
    """Upper confidence bound of the median match count over draws, so that sampling does not push a suspect below what is certified."""
    place = order_statistic_above(len(counts), 0.5, SUSPECT_ALPHA)
    assert place is not None  # the config asks for at least 20 draws
    return int(np.sort(counts)[place - 1])


def smoothed_log2_tail(matches: int, trials: int, candidates: int, draws: int) -> float:
    """
    Exact bound of the smoothed test's p-value: the k-th smallest of D counts reaches t only if D - k + 1 of them do, and each does
    with probability P(Bin(n, 1/candidates) >= t) under the null, however the draws depend on each other (Markov).
    """
    place = order_statistic_above(draws, 0.5, SUSPECT_ALPHA)
    assert place is not None
    return min(0.0, log2_binomial_tail(matches, trials, 1 / candidates) + math.log2(draws / (draws - place + 1)))


def refuse_too_few(config: CertifiedConfig, classes: int) -> None:
    """The triggers must be able to reach level B if all of them survive, else they are useless."""
    most = config.triggers * math.log2(max(1, classes - int(config.family != "unrelated")))
    if most < -LEVEL_B:
        raise InvalidInput(
            f"{config.triggers} triggers over {classes} classes can give at most {most:.0f} bits, a claim needs {-LEVEL_B:.0f}; raise "
            "`triggers`, or use a white-box method"
        )


def read_pool(method: str, claim: Claim, config: CertifiedConfig, classes: int) -> dict[str, torch.Tensor]:
    """
    Images, source labels and range of a pool that may come from a stranger.

    Raises:
        [`~serialization.InvalidInput`]: when it is malformed, or when some source labels are known and some are not: then a right answer has
            no one chance under the null.
    """
    pool = pool_tensors(method, claim.pool, ("images", "labels", "range"))
    images, labels, ends = pool["images"], pool["labels"], pool["range"]
    check_images(method, images, labels)
    if config.family == "embedded" and (images.shape[2] < GLYPH_HEIGHT or images.shape[3] < GLYPH_WIDTH):
        raise InvalidInput(
            f"the pool of `{method}` holds images of {tuple(images.shape[2:])} pixels, too small for a letter"
        )
    if ends.shape != (2, images.shape[1]) or (ends[0] > ends[1]).any():
        raise InvalidInput(f"the pool of `{method}` needs `range`: the least and greatest value of each channel")
    wanted = len(claim.assignment.subkeys) * config.triggers
    if len(images) < wanted:
        raise InvalidInput(f"the pool holds {len(images)} images, {wanted} are needed")
    known = (labels >= 0) & (labels < classes)
    if not (labels == -1).all() if config.family == "unrelated" else not known.all():
        kind = "-1, no class" if config.family == "unrelated" else f"one of the {classes} classes"
        raise InvalidInput(
            f"the pool of `{method}`: every source label must be {kind}, for triggers of family {config.family!r}"
        )
    return {"images": images, "labels": labels, "range": ends}
