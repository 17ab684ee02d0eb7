"""The certificate: how far the weights may move, in a stated norm, before the smoothed trigger test can fall below a bound."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from torch import nn
from tqdm.auto import tqdm

from ...backbones import refuse_half_precision
from ...evidence import LEVEL_B
from ...keys import Claim
from ...serialization import InvalidInput
from ...statistics import (
    charge_looks,
    draws_to_certify,
    order_statistic_index,
    quantile_test,
    smallest_certifiable_quantile,
)
from .noise import NoisyNets, clean_weights, noise_seeds, weighted_distance
from .verifier import SUSPECT_ALPHA, CertifiedVerifier, smoothed_log2_tail


RADII = (0.2, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
# Share of each radius's failure probability that early stopping may spend.
EARLY = 0.2
LIMITS = (
    "It holds in the owner's coordinates: permuted channels are far away although they change no answer.",
    "It says that the mark was not removed, never that a model was stolen.",
    "Compare the radius with the distances of real attacks: most of them move the weights much further.",
)


@dataclass(frozen=True)
class CertifiedRadius:
    """
    One line of a certificate.

    Args:
        radius (`float`):
            In units of sigma.
        distance (`float`):
            The same in the certificate's norm: `radius * sigma`.
        matches (`int`, *optional*):
            With the stated confidence every net within this distance has at least so many smoothed matches; `None` where the draws
            certify nothing.
        accuracy (`float`, *optional*):
            `matches` as a share of the triggers.
        log2_p (`float`):
            p-value that the smoothed test of such a net has at most.
        certified (`bool`):
            Whether that reaches level B (and `at_least`, if one was asked for).
        draws (`int`):
            Noise draws that were looked at; fewer than asked for when the answer was clear before.
    """

    radius: float
    distance: float
    matches: int | None
    accuracy: float | None
    log2_p: float
    certified: bool
    draws: int


@dataclass(frozen=True)
class Certificate:
    """
    Certified trigger accuracy against radius, one curve per sub-key. An owner's warranty against removal; evidence against a
    suspect comes from [`CertifiedVerifier`].

    For each sub-key: with probability at least `confidence` over the owner's draws and the draws of one suspect's verification, all
    radii at once, every net whose weights lie within a row's distance passes the smoothed test with at least its matches, provided that it was fixed
    before that verification's noise was known (Bansal et al., ICML 2022, with the percentile bound of Chiang et al., 2020).

    Args:
        sigma (`float`):
            Noise level.
        norm (`str`):
            The norm of the distances, in words.
        moves (`str`):
            What an attacker may move within them.
        triggers (`int`):
            Triggers per sub-key.
        draws (`int`):
            Noise draws of the owner.
        suspect_draws (`int`):
            Noise draws of one suspect's verification.
        confidence (`float`):
            Joint confidence of all radii and of a suspect's verification.
        relative_sigma (`float`):
            Noise level against the root mean square of the weights as they are now.
        level_b_matches (`int`, *optional*):
            Fewest matches at which the smoothed test reaches level B.
        curves (`dict[int, list[CertifiedRadius]]`):
            By index of the sub-key.
        attack_distances (`dict[str, float]`):
            How far real attacks moved the same weights, in units of sigma; infinite where one moved what the certificate holds fixed.
        limits (`tuple[str, ...]`):
            What it does not say, in words.

    Example:

    ```python
    >>> config = CertifiedConfig(draws=200)
    >>> trainer = CertifiedTrainer(model=model, args=args, train_dataset=ds, watermark=config, owner=owner)
    >>> certificate = trainer.certify(radii=[0.2, 0.4])
    >>> certificate.radius, certificate.accuracy_at(0.2)
    ```
    """

    sigma: float
    norm: str
    moves: str
    triggers: int
    draws: int
    suspect_draws: int
    confidence: float
    relative_sigma: float
    level_b_matches: int | None
    curves: dict[int, list[CertifiedRadius]]
    attack_distances: dict[str, float] = field(default_factory=dict)
    limits: tuple[str, ...] = LIMITS

    @property
    def radius(self) -> float:
        """The largest radius, in units of sigma, that every sub-key certifies at level B; 0.0 for none."""
        radii = [max((row.radius for row in curve if row.certified), default=0.0) for curve in self.curves.values()]
        return min(radii, default=0.0)

    @property
    def certified(self) -> bool:
        """Whether every sub-key certifies some radius at level B."""
        return self.radius > 0

    def accuracy_at(self, radius: float) -> float:
        """
        Certified trigger accuracy at one of the radii, the worst sub-key's; 0.0 where nothing is certified.

        Raises:
            `ValueError`: for a radius that the certificate does not have.
        """
        rows = [row for curve in self.curves.values() for row in curve if row.radius == radius]
        if not rows:
            raise ValueError(f"`radius` is {radius}: this certificate has none of that size")
        return min(row.accuracy or 0.0 for row in rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; what is not finite becomes `None`."""
        distances = {label: value if np.isfinite(value) else None for label, value in self.attack_distances.items()}
        return asdict(self) | {
            "attack_distances": distances,
            "relative_sigma": self.relative_sigma if np.isfinite(self.relative_sigma) else None,
            "certified": self.certified,
            "radius": self.radius,
            "limits": list(self.limits),
            "curves": {str(index): [asdict(row) for row in curve] for index, curve in self.curves.items()},
        }


def certify(
    claim: Claim,
    model: nn.Module,
    radii: Sequence[float] = RADII,
    confidence: float = 0.99,
    draws: int | None = None,
    at_least: float | None = None,
    attacked: Mapping[str, nn.Module] | None = None,
    progress: bool = False,
    share: Callable[[list[int], Callable[[list[int]], np.ndarray]], np.ndarray] | None = None,
) -> Certificate:
    """
    Certifies a marked model of one's own.

    Args:
        claim ([`~keys.Claim`]):
            The key's claim of this method.
        model (`nn.Module`):
            The marked model. Its weights are bit-identical afterwards.
        radii (`Sequence[float]`, *optional*):
            In units of sigma.
        confidence (`float`, *optional*, defaults to 0.99):
            For all radii and for the sampling error of one suspect's verification together.
        draws (`int`, *optional*):
            Noise draws; the config's by default.
        at_least (`float`, *optional*):
            Ask only whether each radius holds this trigger accuracy, and stop drawing as soon as all answers are clear. The curve then
            states this accuracy, not the best one.
        attacked (`Mapping[str, nn.Module]`, *optional*):
            Attacked versions of the model by name, whose distances are stated beside the radii.
        progress (`bool`, *optional*, defaults to `False`):
            Show a progress bar.
        share (`Callable`, *optional*):
            Spreads the draws over processes; see [`CertifiedTrainer.certify`].

    Raises:
        `ValueError`: for radii or a confidence that make no sense, or radii beyond what the draws can certify.
        [`~serialization.InvalidInput`]: for half precision or another architecture.
    """
    verifier = CertifiedVerifier(claim)
    config = verifier.config
    if config.labels == "one":
        raise InvalidInput(
            "this key has one label for all triggers (preset `paper`): a net that gives no other answer would be certified, so none is; make a key with labels='per_image'"
        )
    draws = config.draws if draws is None else draws
    radii = [float(radius) for radius in radii]
    alpha = owner_alpha(confidence, radii, draws, early=0.0 if at_least is None else EARLY)
    if at_least is not None and not 0 < at_least <= 1:
        raise ValueError(f"`at_least` is {at_least}: choose an accuracy in (0, 1]")
    refuse_half_precision(model)
    net = verifier.folded(model)
    weights = clean_weights(net, model)
    curves = {}
    for subkey in claim.subkeys:
        nets, images, labels = (
            NoisyNets(net, weights, verifier.spread(), config.precision),
            verifier.triggers(subkey),
            verifier.labels(subkey),
        )
        # The verification of a suspect draws first, so owner's and suspect's noise are independent.
        seeds = noise_seeds(subkey, draws, skip=config.suspect_draws)
        counts: Iterable[int] = _matches(nets, images, labels, seeds)
        if at_least is None and share is not None:
            counts = share(seeds, partial(_count_matches, nets, images, labels))
        bar = tqdm(counts, total=draws, desc="noise draws", disable=not progress, delay=2, leave=False)
        if at_least is None:
            curves[subkey.index] = curve_of(np.fromiter(bar, dtype=np.int64), verifier, radii, alpha)
        else:
            curves[subkey.index] = decide_early(bar, verifier, radii, alpha, at_least, draws)
    return Certificate(
        sigma=config.sigma,
        norm="l2" if config.noise == "isotropic" else "l2 over folded weights, each tensor in units of its scale",
        moves="parameters and BatchNorm statistics" if config.moves == "all" else "parameters",
        triggers=config.triggers,
        draws=draws,
        suspect_draws=config.suspect_draws,
        confidence=confidence,
        relative_sigma=relative_sigma(verifier, weights),
        level_b_matches=level_b_matches(verifier),
        curves=curves,
        attack_distances=attack_distances(verifier, model, attacked or {}),
    )


def owner_alpha(confidence: float, radii: Sequence[float], draws: int, early: float = 0.0) -> float:
    """
    The failure probability left to each radius: what confidence leaves minus the suspect's share, split evenly (Bonferroni). Refuses radii
    that the last look, which has `1 - early` of it, could never certify.
    """
    if draws < 1:
        raise ValueError(f"`draws` is {draws}: choose at least 1; 1000 is the default of the config")
    if not 0 < confidence < 1 - SUSPECT_ALPHA:
        raise ValueError(
            f"`confidence` is {confidence}: choose a number between 0 and {1 - SUSPECT_ALPHA} (exclusive); {SUSPECT_ALPHA} goes to the "
            "sampling error of a suspect's verification"
        )
    if not radii or any(not 0 < radius < 10 for radius in radii) or len(set(radii)) != len(radii):
        raise ValueError(f"`radii` is {list(radii)}: give different radii between 0 and 10, in units of sigma")
    alpha = (1 - confidence - SUSPECT_ALPHA) / len(radii)
    last = (1 - early) * alpha
    largest = -float(norm.ppf(smallest_certifiable_quantile(draws, last)))
    if max(radii) > largest:
        needed = draws_to_certify(float(norm.cdf(-max(radii))), last)
        raise ValueError(
            f"radius {max(radii)} is beyond what {draws} draws can certify ({largest:.3f} for {len(radii)} radii at confidence "
            f"{confidence}); lower it, or use draws={needed}"
        )
    return alpha


def curve_of(
    counts: np.ndarray, verifier: CertifiedVerifier, radii: Sequence[float], alpha: float
) -> list[CertifiedRadius]:
    """The full answer: for every radius the order statistic that lies below the Phi(-radius) quantile with probability 1 - alpha."""
    ordered = np.sort(counts)
    rows = []
    for radius in sorted(radii):
        place = order_statistic_index(len(ordered), float(norm.cdf(-radius)), alpha)
        rows.append(_row(verifier, radius, None if place is None else int(ordered[place - 1]), len(ordered)))
    return rows


def decide_early(
    counts: Iterable[int],
    verifier: CertifiedVerifier,
    radii: Sequence[float],
    alpha: float,
    at_least: float,
    draws: int,
) -> list[CertifiedRadius]:
    """For every radius whether `at_least` holds there, from as few draws as that takes."""
    wanted = int(np.ceil(at_least * verifier.config.triggers - 1e-9))
    tests = {radius: quantile_test(draws, float(norm.cdf(-radius)), alpha, EARLY) for radius in sorted(radii)}
    rows: dict[float, CertifiedRadius] = {}
    below = 0
    for seen, count in enumerate(counts, 1):
        below += count < wanted
        for radius, test in tests.items():
            decision = None if radius in rows else test.decide(seen, below)
            if decision is not None:
                rows[radius] = _row(verifier, radius, wanted if decision else None, seen)
        if len(rows) == len(tests):
            break
    return [rows[radius] for radius in tests]


def _matches(nets: NoisyNets, images: torch.Tensor, labels: np.ndarray, seeds: list[int]) -> Iterator[int]:
    """Matches of each noise draw, one after the other."""
    return (int((answer == labels).sum()) for answer in nets.answers(seeds, images))


def _count_matches(nets: NoisyNets, images: torch.Tensor, labels: np.ndarray, seeds: list[int]) -> np.ndarray:
    return np.fromiter(_matches(nets, images, labels, seeds), dtype=np.int64)


def _row(verifier: CertifiedVerifier, radius: float, matches: int | None, draws: int) -> CertifiedRadius:
    config = verifier.config
    log2_p = 0.0 if matches is None else _verification_log2_p(verifier, matches)
    share = None if matches is None else matches / config.triggers
    return CertifiedRadius(radius, radius * config.sigma, matches, share, round(log2_p, 2), log2_p <= LEVEL_B, draws)


def _verification_log2_p(verifier: CertifiedVerifier, matches: int) -> float:
    """The smoothed test's p-value in a verification, of which it is one of two looks."""
    config = verifier.config
    candidates = verifier.classes - int(config.family != "unrelated")
    return charge_looks(smoothed_log2_tail(matches, config.triggers, candidates, config.suspect_draws), 2)


def level_b_matches(verifier: CertifiedVerifier) -> int | None:
    """The fewest matches at which the smoothed test reaches level B; `None` where all triggers are not enough."""
    counts = range(verifier.config.triggers + 1)
    return next((matches for matches in counts if _verification_log2_p(verifier, matches) <= LEVEL_B), None)


def relative_sigma(verifier: CertifiedVerifier, weights: dict[str, torch.Tensor]) -> float:
    """Noise level against the weights as they are now: the root mean square ratio over the tensors with two dimensions and more."""
    ratios = [
        verifier.config.sigma * verifier.scales[name] / float(tensor.detach().double().square().mean().sqrt())
        for name, tensor in weights.items()
        if tensor.ndim > 1 and tensor.detach().any()
    ]
    return round(float(np.sqrt(np.mean(np.square(ratios)))), 4) if ratios else float("nan")


def attack_distances(
    verifier: CertifiedVerifier, model: nn.Module, attacked: Mapping[str, nn.Module]
) -> dict[str, float]:
    """How far each attacked model lies from `model`, in units of sigma; infinite where it moved what the certificate holds fixed."""
    if not attacked:
        return {}
    net = verifier.folded(model)
    ours, distances = net.coordinates(model), {}
    for label, other in attacked.items():
        other = copy.deepcopy(other).float()
        if _shapes(other) != _shapes(model):
            distances[label] = float("inf")
            continue
        distance = weighted_distance(ours, net.coordinates(other), verifier.scales) / verifier.config.sigma
        held = verifier.config.moves == "parameters" and _buffers_moved(model, other)
        distances[label] = float("inf") if held else round(distance, 3)
    return distances


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _buffers_moved(model: nn.Module, attacked: nn.Module) -> bool:
    """Whether BatchNorm statistics changed; batch counts and the like are no part of the function."""
    theirs = dict(attacked.named_buffers())
    return any(
        tensor.is_floating_point() and not tensor.equal(theirs[name].to(tensor))
        for name, tensor in model.named_buffers()
    )
