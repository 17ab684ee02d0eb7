"""Configs of the two soft-label watermarks."""

from dataclasses import dataclass, field
from typing import ClassVar

from huggingface_hub.dataclasses import strict

from ...configuration import WatermarkConfig, require, require_target
from .facts import MOST_FEATURES


@dataclass
class SoftLabelConfig(WatermarkConfig):
    """
    What [`USPConfig`] and [`CSPConfig`] share; use one of these.

    Args:
        subkeys (`int`, *optional*, defaults to 1):
            Number of sub-keys to embed. Their perturbations add up, each scaled by one over the square root of their number.
        features (`int`, *optional*, defaults to 38):
            Least number of features of an image: 6 differences between neighbouring patches of each channel, and the colours of the smallest square grid
            of patches with which there are so many, where a patch and its mirror image count once (8 x 8 grey ones, 4 x 4 coloured ones). Each carries
            one sign per class, at most one bit of evidence each.
        mass (`float`, *optional*, defaults to 0.1):
            Probability that the soft labels leave to the classes other than the true one, or answers that are marked at inference time to
            those other than the top one.
        amplitude (`float`, *optional*, defaults to 1.0):
            Size of the perturbation of the other classes' log-probabilities, in nats.
        strength (`float`, *optional*, defaults to 1.0):
            Weight of the divergence between the model's distribution over the other classes and the perturbed one.
        target_log2_p (`float`, *optional*, defaults to -96.0):
            Evidence that is wanted of each sub-key at the end of the training, such as -96: then `strength` follows from what is read meanwhile. 0 leaves it
            as it is.
        max_loss (`float`, *optional*, defaults to 0.5):
            Points of accuracy that the mark may cost, as far as the images of the pool can tell.
        decision (`float`, *optional*, defaults to 0.0):
            Share of the perturbation that is added to the top class's logit as well. With 0 a class is never given up for the mark; with 0.5
            labels alone carry some of the mark, less than a claim needs in the one run that was measured, at a price in accuracy (README).
        pool_per_class (`int`, *optional*):
            Training images per marked class that are set aside as queries. By default 12, and more of few classes: 512 images in all, as far as that
            is a twentieth of the training images at most.
        source_classes (`int`, *optional*, defaults to 64):
            Query images are taken of at most this many classes; all are marked.
    """

    subkeys: int = field(default=1, metadata={"help": "Number of sub-keys to embed."})
    features: int = field(default=38, metadata={"help": "Least number of image features that carry signs."})
    mass: float = field(default=0.1, metadata={"help": "Probability that the soft labels leave to the other classes."})
    amplitude: float = field(default=1.0, metadata={"help": "Size of the perturbation of log-probabilities, in nats."})
    strength: float = field(default=1.0, metadata={"help": "Weight of the fit of the perturbed distribution."})
    target_log2_p: float = field(default=-96.0, metadata={"help": "Evidence that is wanted of each sub-key."})
    max_loss: float = field(default=0.5, metadata={"help": "Points of accuracy that the mark may cost."})
    decision: float = field(
        default=0.0,
        metadata={"help": "Share of the perturbation that moves decisions too, for labels alone."},
    )
    pool_per_class: int | None = field(
        default=None, metadata={"help": "Images per class that are set aside as queries; by default 12 or more."}
    )
    source_classes: int = field(default=64, metadata={"help": "Query images are taken of at most this many classes."})

    def __post_init__(self) -> None:
        require_target(self)
        require(1 <= self.subkeys <= 16, "subkeys", self.subkeys, "choose 1 to 16")
        require(
            1 <= self.features <= MOST_FEATURES,
            "features",
            self.features,
            f"choose 1 to {MOST_FEATURES}; 38 is the default",
        )
        require(0 < self.mass < 0.5, "mass", self.mass, "choose a share in (0, 0.5); 0.1 is the default")
        require(0 < self.amplitude <= 3, "amplitude", self.amplitude, "choose a number in (0, 3]; 1.0 is the default")
        require(
            0 <= self.strength <= 1000, "strength", self.strength, "choose a number in [0, 1000]; 1.0 is the default"
        )
        require(0 <= self.decision <= 1, "decision", self.decision, "choose a share in [0, 1]; 0.0 is the default")
        require(
            self.pool_per_class is None or 2 <= self.pool_per_class <= 10_000,
            "pool_per_class",
            self.pool_per_class,
            "choose 2 to 10000, or leave it out",
        )
        require(
            1 <= self.source_classes <= 10**6,
            "source_classes",
            self.source_classes,
            "choose 1 to 1000000; 64 is the default",
        )


@strict
@dataclass
class USPConfig(SoftLabelConfig):
    """
    Configuration of [`USPTrainer`]: soft labels whose small probabilities are raised and lowered by a template that the key draws, a
    linear function of an image's coarse colours and of differences between neighbouring patches, with a paired detector beside the exact test.

    Paper: Chien, Shen, *Customized Watermarking for Deep Neural Networks via Label Distribution Perturbation*, 2022,
    https://huggingface.co/papers/2208.05477 (our reconstruction: only the abstract is public). Deviations: the detector is the owner's
    own aid and no evidence; evidence is a test of the key's signs with a proven bound. Signs belong to pairs of a feature and a class, not to
    pairs of classes: these are too few with ten classes, and fine-tuning puts natural likenesses back in their place.

    Its fields are those of [`SoftLabelConfig`].
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

    Its fields are those of [`SoftLabelConfig`].
    """

    method: ClassVar[str] = "csp"
