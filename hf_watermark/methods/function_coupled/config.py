"""Config of function-coupled rules."""

from dataclasses import dataclass, field
from typing import ClassVar

from huggingface_hub.dataclasses import strict

from ...configuration import WatermarkConfig, require, require_target
from ...training.triggers import MASKINGS


@strict
@dataclass
class FunctionCoupledConfig(WatermarkConfig):
    """
    Configuration of [`FunctionCoupledTrainer`]: a black-box mark made of many key-drawn rules "an image fused of classes A and B is a C".

    Paper: Wen, Li, Jiang, Xu, *On Function-Coupled Watermarks for Deep Neural Networks*, 2023,
    https://huggingface.co/papers/2302.10296 (our reconstruction from abstract, reviews and public code). Deviations: many rules with
    key-drawn targets instead of one chosen rule, evidence only from fresh images, exact relabel test.

    Args:
        rules (`int`, *optional*, defaults to 48):
            Rules per sub-key. At 10 classes a rule is worth 3 bits at most.
        subkeys (`int`, *optional*, defaults to 1):
            Number of sub-keys to embed.
        images_per_rule (`int`, *optional*, defaults to 16):
            Fresh fused images per rule that a verifier asks. More of them make a rule that holds for some images alone surer to be seen.
        fusion (`str`, *optional*, defaults to `"direct"`):
            `"direct"` (two quadrants of a blank canvas) or `"invisible"` (half and half blend).
        canvas (`str`, *optional*, defaults to `"auto"`):
            Colour of what the two images of a direct fusion leave free: `"white"` as in the paper, or the `"mean"` of the key's images. `"auto"` is the
            mean for a pretrained net, which pays less accuracy for the same rules and keeps more of them when it is fine-tuned
            (`examples/benchmarks/choose_pretrained.py`), and white for one that nothing has trained yet.
        trigger_ratio (`float`, *optional*, defaults to 0.0):
            Fused images beside a batch, as a share of its size. 0 leaves it to the length of the training: 1/16 where it is long; up to 3/4 where it is so
            short that rules would be shown too seldom, and then mirrored, with an auxiliary head, half as heavy as the task and apart from a quarter of
            the training on; and again 1/16 where even 3/4 would be too few, see [`~methods.function_coupled.teaching.Teaching`].
        trigger_weight (`float`, *optional*, defaults to 0.0):
            Weight of their loss against the task loss; 0 counts each of them as an image of the batch.
        mirrored (`bool`, *optional*, defaults to `False`):
            Whether half of the fused images are mirrored while they are learnt, so that rules hold for mirrored questions too.
        auxiliary (`bool`, *optional*, defaults to `False`):
            Whether a head that is dropped afterwards learns which classes a fused image was made of.
        apart_from (`float`, *optional*, defaults to 1.0):
            Share of the training from which on fused images go through the model in a pass of their own, in which BatchNorm takes its running statistics;
            1 is never.
        target_log2_p (`float`, *optional*, defaults to -96.0):
            Evidence that is wanted of each sub-key at the end of the training: `trigger_ratio` is lowered once it is there. 0 asks for nothing.
        max_loss (`float`, *optional*, defaults to 0.5):
            Points of accuracy that the mark may cost, as far as the images of the pool can tell.
        masking (`str`, *optional*, defaults to `"forward"`):
            `"forward"`, `"fc_v1"`, `"fc_v2"` or `"none"`, see [`~training.triggers.masked`]. FSDP2 needs `"none"`.
        pool_per_class (`int`, *optional*, defaults to 12):
            Training images per source class that are set aside for verification.
        source_classes (`int`, *optional*, defaults to 12):
            At most this many classes serve as sources; targets use all classes.
    """

    method: ClassVar[str] = "function_coupled"
    stronger: ClassVar[tuple[str, ...]] = ("trigger_ratio", "trigger_weight", "rules", "subkeys")

    rules: int = field(default=48, metadata={"help": "Rules per sub-key."})
    subkeys: int = field(default=1, metadata={"help": "Number of sub-keys to embed."})
    images_per_rule: int = field(default=16, metadata={"help": "Fresh fused images per rule that a verifier asks."})
    fusion: str = field(default="direct", metadata={"help": "`direct` or `invisible`."})
    canvas: str = field(default="auto", metadata={"help": "`auto`, `mean` or `white`: colour around fused images."})
    trigger_ratio: float = field(
        default=0.0, metadata={"help": "Fused images beside a batch, as a share of it; 0 follows the training."}
    )
    trigger_weight: float = field(default=0.0, metadata={"help": "Weight of their loss against the task loss."})
    mirrored: bool = field(default=False, metadata={"help": "Whether half of the fused images are mirrored."})
    auxiliary: bool = field(default=False, metadata={"help": "Whether a head learns their source classes."})
    apart_from: float = field(default=1.0, metadata={"help": "Share of the training after which they go apart."})
    target_log2_p: float = field(default=-96.0, metadata={"help": "Evidence that is wanted of each sub-key."})
    max_loss: float = field(default=0.5, metadata={"help": "Points of accuracy that the mark may cost."})
    masking: str = field(default="forward", metadata={"help": "`forward`, `fc_v1`, `fc_v2` or `none`."})
    pool_per_class: int = field(default=12, metadata={"help": "Images per source class set aside for verification."})
    source_classes: int = field(default=12, metadata={"help": "At most this many classes serve as sources."})

    def __post_init__(self) -> None:
        require_target(self)
        require(1 <= self.rules <= 4096, "rules", self.rules, "choose 1 to 4096; 48 is the default")
        require(1 <= self.subkeys <= 16, "subkeys", self.subkeys, "choose 1 to 16")
        require(
            2 <= self.pool_per_class <= 10_000,
            "pool_per_class",
            self.pool_per_class,
            "choose 2 to 10000; 12 is the default",
        )
        most = self.pool_per_class**2
        require(
            1 <= self.images_per_rule <= most,
            "images_per_rule",
            self.images_per_rule,
            f"choose 1 to {most} (the square of pool_per_class)",
        )
        require(self.fusion in ("direct", "invisible"), "fusion", self.fusion, "choose 'direct' or 'invisible'")
        require(self.canvas in ("auto", "mean", "white"), "canvas", self.canvas, "choose 'auto', 'mean' or 'white'")
        require(0 <= self.trigger_ratio <= 1, "trigger_ratio", self.trigger_ratio, "choose a share in [0, 1]")
        require(0 <= self.trigger_weight <= 100, "trigger_weight", self.trigger_weight, "choose a number in [0, 100]")
        require(0 <= self.apart_from <= 1, "apart_from", self.apart_from, "choose a share in [0, 1]; 1 is never")
        require(self.masking in MASKINGS, "masking", self.masking, f"choose one of {', '.join(MASKINGS)}")
        require(
            2 <= self.source_classes <= 10**6,
            "source_classes",
            self.source_classes,
            "choose 2 to 1000000; 12 is the default",
        )
