"""`Moment`: where a training is."""

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Moment:
    """
    Where the training is.

    Args:
        step, steps (`int`):
            Optimizer steps taken, and planned.
        micro_step (`int`):
            Backward passes since the last optimizer step.
        process (`int`):
            Rank of this process.
        images (`int`):
            That the whole training takes, each as often as it is seen; 0 where nobody said.
    """

    step: int = 0
    steps: int = 0
    micro_step: int = 0
    process: int = 0
    images: int = 0

    def seed(self, secret: bytes, purpose: bytes, process: int = 0) -> int:
        """A 63-bit seed that is a function of the step alone, so that a resumed run draws what the uninterrupted one would have."""
        place = f"{self.step}/{self.micro_step}/{process}".encode()
        return int.from_bytes(hashlib.sha256(secret + purpose + place).digest()[:8], "big") >> 1

    def generator(self, secret: bytes, purpose: bytes, process: int = 0) -> torch.Generator:
        """A generator on the CPU with that seed."""
        return torch.Generator().manual_seed(self.seed(secret, purpose, process))
