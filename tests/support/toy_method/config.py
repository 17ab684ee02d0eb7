"""Config of the toy."""

from dataclasses import dataclass, field
from typing import ClassVar

from huggingface_hub.dataclasses import strict

from hf_watermark.configuration import WatermarkConfig, require


@strict
@dataclass
class ToySignsConfig(WatermarkConfig):
    """
    Args:
        bits (`int`, *optional*, defaults to 256):
            Bits per sub-key.
        subkeys (`int`, *optional*, defaults to 3):
            Number of sub-keys: one is opened in public, one may be opened in a dispute, one is left for the next.
        group (`int`, *optional*, defaults to 8):
            Weights per bit.
        margin (`float`, *optional*, defaults to 0.1):
            How far a sum is pushed to its side.
    """

    method: ClassVar[str] = "toy_signs"

    bits: int = field(default=256, metadata={"help": "Bits per sub-key."})
    subkeys: int = field(default=3, metadata={"help": "Number of sub-keys."})
    group: int = field(default=8, metadata={"help": "Weights per bit."})
    margin: float = field(default=0.1, metadata={"help": "How far a sum is pushed to its side."})

    def __post_init__(self):
        require(1 <= self.bits <= 4096, "bits", self.bits, "choose 1 to 4096")
        require(1 <= self.subkeys <= 16, "subkeys", self.subkeys, "choose 1 to 16")
        require(1 <= self.group <= 64, "group", self.group, "choose 1 to 64")
        require(0 < self.margin < 10, "margin", self.margin, "choose a number in (0, 10)")
