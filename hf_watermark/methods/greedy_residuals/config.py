"""Config of greedy residuals."""

from dataclasses import dataclass, field
from typing import ClassVar

from huggingface_hub.dataclasses import strict

from ...configuration import WatermarkConfig, require


@strict
@dataclass
class GreedyResidualsConfig(WatermarkConfig):
    """
    Configuration of [`GreedyResidualsTrainer`]: a white-box, multi-bit mark in the signs of greedily reduced weight groups.

    Paper: Liu, Weng, Zhu, *Watermarking Deep Neural Networks with Greedy Residuals*, ICML 2021 (our reconstruction from the public
    code: the full paper could not be read). Deviations: groups are key-drawn and lie within one row of a canonical weight, spread over many
    layers; bits come from the key instead of a text signature; the margin is relative to the row's root mean square.

    Args:
        bits (`int`, *optional*, defaults to 512):
            Bits per sub-key. 512 reach level B with up to 30 % bit errors.
        subkeys (`int`, *optional*):
            Number of sub-keys to embed. By default as many as fit with disjoint groups while at most 70 % of the carrier weights
            are in a group, at least 1 and at most 8; in an adapter as many as its ranks bear.
        group_size (`int`, *optional*, defaults to 64):
            Weights per bit.
        kept_fraction (`float`, *optional*, defaults to 0.5):
            Share of each group, by magnitude, that the residual sums (the paper's 1 - 1/eta with eta = 2).
        margin (`float`, *optional*, defaults to 0.1):
            Hinge margin mu, in units of the row's root mean square; for an adapter that of the row that it changes.
        strength (`float`, *optional*, defaults to 0.01):
            Weight lambda of the summed hinge against the task loss.
        written_first (`bool`, *optional*, defaults to `False`):
            Before the first step of the training, write the nearest weights that hold all bits ([`mark_model`] does the same to finished
            weights); the hinge then only keeps them. Without it the hinge has to bring the bits in. Not under FSDP2, where the hinge does it.
        layers (`list[str]`, *optional*):
            Carrier roles such as `"resnet.3"`, or tensor names, instead of every carrier of the family, or of all that an adapter changes.
        preset (`str`, *optional*, defaults to `"default"`):
            `"paper"` marks the first convolution on the published 256 x 253 grid with mu 0.1, lambda 0.01, eta 2.
    """

    method: ClassVar[str] = "greedy_residuals"

    bits: int = field(default=512, metadata={"help": "Bits per sub-key."})
    subkeys: int | None = field(
        default=None, metadata={"help": "Number of sub-keys; as many as fit (1-8) by default."}
    )
    group_size: int = field(default=64, metadata={"help": "Weights per bit."})
    kept_fraction: float = field(default=0.5, metadata={"help": "Share of each group that the residual sums."})
    margin: float = field(default=0.1, metadata={"help": "Hinge margin in units of the row's root mean square."})
    strength: float = field(default=0.01, metadata={"help": "Weight of the summed hinge against the task loss."})
    written_first: bool = field(
        default=False, metadata={"help": "Write the bits before the first step; the hinge then only keeps them."}
    )
    layers: list[str] | None = field(default=None, metadata={"help": "Carrier roles or tensor names to use."})
    preset: str = field(default="default", metadata={"help": "`default` or `paper`."})

    def __post_init__(self) -> None:
        require(1 <= self.bits <= 2**16, "bits", self.bits, "choose 1 to 65536; 512 is the default")
        require(self.subkeys is None or 1 <= self.subkeys <= 16, "subkeys", self.subkeys, "choose 1 to 16, or None")
        require(8 <= self.group_size <= 4096, "group_size", self.group_size, "choose 8 to 4096; 64 is the default")
        require(0 < self.kept_fraction <= 1, "kept_fraction", self.kept_fraction, "choose a share in (0, 1]")
        require(0 < self.margin <= 100, "margin", self.margin, "choose a number in (0, 100]; 0.1 is the default")
        require(
            0 < self.strength <= 1000, "strength", self.strength, "choose a number in (0, 1000]; 0.01 is the default"
        )
        require(
            self.layers is None or len(self.layers) > 0, "layers", self.layers, "name at least one, or leave it out"
        )
        require(self.preset in ("default", "paper"), "preset", self.preset, "choose 'default' or 'paper'")
        require(self.preset != "paper" or self.bits == 256, "bits", self.bits, "preset 'paper' has exactly 256 bits")
        if self.preset == "paper":
            require(not self.written_first, "written_first", True, "preset 'paper' can only be trained; leave it out")

    @classmethod
    def paper(cls) -> "GreedyResidualsConfig":
        """The published setting: first convolution, grid 256 x 253, mu 0.1, lambda 0.01, eta 2."""
        return cls(
            bits=256,
            subkeys=1,
            group_size=253,
            kept_fraction=0.5,
            margin=0.1,
            strength=0.01,
            layers=["stem"],
            preset="paper",
        )
