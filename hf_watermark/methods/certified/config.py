"""Config of certified watermarks."""

from dataclasses import dataclass, field
from typing import ClassVar

from huggingface_hub.dataclasses import strict

from ...configuration import WatermarkConfig, require, require_target
from ...training.triggers import FAMILIES


@strict
@dataclass
class CertifiedConfig(WatermarkConfig):
    """
    Configuration of [`CertifiedTrainer`]: triggers whose answers hold when Gaussian noise is added to the weights, so that no
    change of the weights below a proven distance removes them.

    Paper: Bansal, Chiang, Curry, Jain, Wigington, Manjunatha, Dickerson, Goldstein, *Certified Neural Network Watermarks with Randomized
    Smoothing*, ICML 2022, https://huggingface.co/papers/2207.07972 (our reconstruction from abstract and public code). Deviations:
    a label of its own for every trigger, noise relative to each tensor's size, BatchNorm folded into the weights, noisy passes
    spread over the ordinary steps, exact and simultaneous bounds.

    Args:
        triggers (`int`, *optional*, defaults to 100):
            Triggers per sub-key. At 10 classes 48 right answers of 100 reach level B.
        subkeys (`int`, *optional*, defaults to 1):
            Number of sub-keys to embed.
        family (`str`, *optional*, defaults to `"noise"`):
            `"noise"`, `"embedded"` or `"unrelated"`, see [`~training.triggers.render_triggers`].
        sigma (`float`, *optional*, defaults to 0.25):
            Standard deviation of the noise, in units of each tensor's scale. Certified radii are in units of it.
        noise (`str`, *optional*, defaults to `"bearable"`):
            `"relative"`: a tensor's scale is its root mean square when training starts, so the certified distance is a weighted l2 norm.
            `"bearable"`: the same, halved until the noisy model still answers like the clean one when training starts (correlation of a
            quarter and more). A deep pretrained net bears less than a small one. `relative_sigma` of the
            certificate says how large the noise is. `"isotropic"`: every scale is 1.
        moves (`str`, *optional*, defaults to `"all"`):
            What the certificate lets an attacker move: `"all"` (parameters and BatchNorm statistics, folded into the weights) or
            `"parameters"`.
        labels (`str`, *optional*, defaults to `"per_image"`):
            `"per_image"`, or `"one"` label for all triggers, which can give no evidence.
        schedule (`str`, *optional*, defaults to `"amortised"`):
            `"amortised"`: one noisy trigger pass in every ordinary step. `"released"`: 21 noise levels of 100 draws before each epoch.
        trigger_ratio (`float`, *optional*, defaults to 0.5):
            Triggers in a noisy pass, as a share of the batch size.
        strength (`float`, *optional*, defaults to 0.3):
            Weight of the trigger loss against the task loss.
        target_log2_p (`float`, *optional*, defaults to -96.0):
            Evidence that is wanted of each sub-key at the end of the training, such as -96: then `strength` follows from what is read meanwhile. 0 leaves it
            as it is.
        max_loss (`float`, *optional*, defaults to 0.5):
            Points of accuracy that the mark may cost, as far as the images of the pool can tell.
        overshoot (`float`, *optional*, defaults to 1.2):
            Largest noise level in training, in units of `sigma`.
        warmup (`float`, *optional*, defaults to 0.5):
            Share of the training in which the noise rises to its full level.
        draws (`int`, *optional*, defaults to 1000):
            Noise draws of a certificate.
        suspect_draws (`int`, *optional*, defaults to 100):
            Noise draws of the smoothed test of a suspect.
        precision (`str`, *optional*, defaults to `"float32"`):
            `"float32"`, or `"bfloat16"`: noise is added in float32, the noisy nets run in bfloat16, for the owner and for every verifier. Faster
            where the processor has bfloat16 instructions (`examples/benchmarks/certify.py`), slow where it has none.
        preset (`str`, *optional*, defaults to `"default"`):
            `"paper"` is the released recipe, for comparison only.
    """

    method: ClassVar[str] = "certified"
    stronger: ClassVar[tuple[str, ...]] = ("strength", "trigger_ratio", "triggers", "subkeys")

    triggers: int = field(default=100, metadata={"help": "Triggers per sub-key."})
    subkeys: int = field(default=1, metadata={"help": "Number of sub-keys to embed."})
    family: str = field(default="noise", metadata={"help": "`noise`, `embedded` or `unrelated`."})
    sigma: float = field(default=0.25, metadata={"help": "Noise level, in units of each tensor's scale."})
    noise: str = field(default="bearable", metadata={"help": "`bearable`, `relative` or `isotropic`."})
    moves: str = field(default="all", metadata={"help": "`all` or `parameters`."})
    labels: str = field(default="per_image", metadata={"help": "`per_image` or `one`."})
    schedule: str = field(default="amortised", metadata={"help": "`amortised` or `released`."})
    trigger_ratio: float = field(default=0.5, metadata={"help": "Triggers per noisy pass, as a share of the batch."})
    strength: float = field(default=0.3, metadata={"help": "Weight of the trigger loss against the task loss."})
    target_log2_p: float = field(default=-96.0, metadata={"help": "Evidence that is wanted of each sub-key."})
    max_loss: float = field(default=0.5, metadata={"help": "Points of accuracy that the mark may cost."})
    overshoot: float = field(default=1.2, metadata={"help": "Largest noise level in training, in units of sigma."})
    warmup: float = field(default=0.5, metadata={"help": "Share of the training in which the noise rises."})
    draws: int = field(default=1000, metadata={"help": "Noise draws of a certificate."})
    suspect_draws: int = field(default=100, metadata={"help": "Noise draws of the smoothed test of a suspect."})
    precision: str = field(default="float32", metadata={"help": "`float32` or `bfloat16`: how noisy nets run."})
    preset: str = field(default="default", metadata={"help": "`default` or `paper`."})

    def __post_init__(self) -> None:
        require_target(self)
        require(1 <= self.triggers <= 10_000, "triggers", self.triggers, "choose 1 to 10000; 100 is the default")
        require(1 <= self.subkeys <= 16, "subkeys", self.subkeys, "choose 1 to 16")
        for name, choices in CHOICES.items():
            require(getattr(self, name) in choices, name, getattr(self, name), f"choose one of {', '.join(choices)}")
        require(0 < self.sigma <= 100, "sigma", self.sigma, "choose a number in (0, 100]; 0.25 is the default")
        require(0 < self.trigger_ratio <= 4, "trigger_ratio", self.trigger_ratio, "choose a share in (0, 4]")
        require(
            0 < self.strength <= 1000, "strength", self.strength, "choose a number in (0, 1000]; 0.3 is the default"
        )
        require(
            1 <= self.overshoot <= 100, "overshoot", self.overshoot, "choose a number in [1, 100]; 1.2 is the default"
        )
        require(0 <= self.warmup <= 1, "warmup", self.warmup, "choose a share in [0, 1]; 0.5 is the default")
        require(10 <= self.draws <= 10**6, "draws", self.draws, "choose 10 to 1000000; 1000 is the default")
        require(
            20 <= self.suspect_draws <= 10**4,
            "suspect_draws",
            self.suspect_draws,
            "choose 20 to 10000; 100 is the default",
        )
        if self.preset == "paper":
            require(self.labels == "one", "labels", self.labels, "preset 'paper' has one label for all triggers")
            require(
                self.schedule == "released", "schedule", self.schedule, "preset 'paper' runs the released schedule"
            )

    @classmethod
    def paper(cls) -> "CertifiedConfig":
        """The released recipe: one label, sigma 1.0 on every parameter, 2,100 trigger passes before each epoch. Gives no evidence."""
        return cls(
            family="embedded",
            sigma=1.0,
            noise="isotropic",
            moves="parameters",
            labels="one",
            schedule="released",
            preset="paper",
        )


CHOICES = {
    "family": FAMILIES,
    "noise": ("bearable", "relative", "isotropic"),
    "moves": ("all", "parameters"),
    "labels": ("per_image", "one"),
    "schedule": ("amortised", "released"),
    "precision": ("float32", "bfloat16"),
    "preset": ("default", "paper"),
}
