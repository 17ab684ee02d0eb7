"""Configs of the two soft-label watermarks."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from huggingface_hub.dataclasses import strict

from ...configuration import WatermarkConfig, require


MOST_BUCKETS = 64


@dataclass
class SoftLabelConfig(WatermarkConfig):
    """What [`USPConfig`] and [`CSPConfig`] share; use one of these."""

    subkeys: int = field(default=1, metadata={"help": "Number of sub-keys to embed."})
    buckets: int = field(
        default=2, metadata={"help": "Key-drawn groups of inputs per class, each with signs of its own."}
    )
    mass: float = field(default=0.1, metadata={"help": "Probability that the soft labels leave to the other classes."})
    amplitude: float = field(default=1.0, metadata={"help": "Size of the perturbation of log-probabilities, in nats."})
    strength: float = field(default=1.0, metadata={"help": "Weight of the fit of the perturbed distribution."})
    pool_per_class: int = field(default=12, metadata={"help": "Images per class set aside for verification."})
    source_classes: int = field(default=64, metadata={"help": "At most this many classes are marked and asked."})

    def __post_init__(self):
        require(1 <= self.subkeys <= 16, "subkeys", self.subkeys, "choose 1 to 16")
        require(
            1 <= self.buckets <= MOST_BUCKETS and self.buckets & (self.buckets - 1) == 0,
            "buckets",
            self.buckets,
            f"choose a power of two up to {MOST_BUCKETS}",
        )
        require(0 < self.mass < 0.5, "mass", self.mass, "choose a share in (0, 0.5); 0.1 is the default")
        require(0 < self.amplitude <= 3, "amplitude", self.amplitude, "choose a number in (0, 3]; 1.0 is the default")
        require(
            self.strength >= 0 and math.isfinite(self.strength),
            "strength",
            self.strength,
            "choose a number that is not negative; 1.0 is the default",
        )
        require(
            self.pool_per_class >= 2, "pool_per_class", self.pool_per_class, "choose at least 2; 12 is the default"
        )
        require(
            self.source_classes >= 1, "source_classes", self.source_classes, "choose at least 1; 64 is the default"
        )


@strict
@dataclass
class USPConfig(SoftLabelConfig):
    """
    Configuration of [`USPTrainer`]: soft labels whose small probabilities are raised and lowered by a template that the key draws, one
    for all images of a class and bucket, with a paired detector beside the exact test.

    Paper: Chien, Shen, *Customized Watermarking for Deep Neural Networks via Label Distribution Perturbation*, 2022,
    https://huggingface.co/papers/2208.05477 (our reconstruction: only the abstract is public). Deviations: the detector is the owner's
    radar and no evidence; evidence is a test of the key's signs with a proven bound.

    Args:
        subkeys (`int`, *optional*, defaults to 1):
            Number of sub-keys to embed. Their perturbations add up, each scaled by one over the square root of their number.
        buckets (`int`, *optional*, defaults to 2):
            Groups into which a key-drawn contrast of coarse image features splits each class; a power of two. Every group has signs of
            its own: `C` classes carry `C * buckets * (C - 1)` signs, at most one bit of evidence each.
        mass (`float`, *optional*, defaults to 0.1):
            Probability that the soft labels leave to the classes other than the true one.
        amplitude (`float`, *optional*, defaults to 1.0):
            Perturbation of the other classes' log-probabilities in nats, up or down.
        strength (`float`, *optional*, defaults to 1.0):
            Weight of the divergence between the model's distribution over the other classes and the perturbed one.
        pool_per_class (`int`, *optional*, defaults to 12):
            Training images per marked class that are set aside as queries.
        source_classes (`int`, *optional*, defaults to 64):
            At most this many classes are marked and asked.
    """

    method: ClassVar[str] = "usp"


@strict
@dataclass
class CSPConfig(SoftLabelConfig):
    """
    Configuration of [`CSPTrainer`]: every licensee's copy answers with a code word of its own in its small probabilities.

    Paper: Chien, Shen, *Customized Watermarking for Deep Neural Networks via Label Distribution Perturbation*, 2022,
    https://huggingface.co/papers/2208.05477 (our reconstruction: only the abstract is public). One key per licensee; its signs
    are the code word. The mark is trained in ([`CSPTrainer`]) or put on the answers at inference time
    ([`PerturbedOutputModelForImageClassification`]).

    Args:
        subkeys (`int`, *optional*, defaults to 1):
            Number of sub-keys to embed. Their perturbations add up, each scaled by one over the square root of their number.
        buckets (`int`, *optional*, defaults to 2):
            Groups into which a key-drawn contrast of coarse image features splits each class; a power of two. Every group has signs of
            its own: `C` classes carry `C * buckets * (C - 1)` signs, at most one bit of evidence each.
        mass (`float`, *optional*, defaults to 0.1):
            Probability that the soft labels, or at inference time the answers, leave to the classes other than the top one.
        amplitude (`float`, *optional*, defaults to 1.0):
            Perturbation of the other classes' log-probabilities in nats, up or down.
        strength (`float`, *optional*, defaults to 1.0):
            Weight of the divergence between the model's distribution over the other classes and the perturbed one.
        pool_per_class (`int`, *optional*, defaults to 12):
            Training images per marked class that are set aside as queries.
        source_classes (`int`, *optional*, defaults to 64):
            At most this many classes are marked and asked.
    """

    method: ClassVar[str] = "csp"
