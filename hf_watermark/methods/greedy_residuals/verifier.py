"""Reads greedy residuals from tensors; needs neither the model class nor a forward pass."""

import torch

from ...backbones import read_weight
from ...evidence import Check, Evidence
from ...keys import Claim, SubKey
from ...suspects import Suspect
from ...verification.carriers import CarrierVerifier
from ...verification.ranged import PartialReading
from .config import GreedyResidualsConfig
from .residuals import (
    Groups,
    greedy_mean,
    paper_residuals,
    place_groups,
    read_residuals,
    refuse_small,
    signs,
)


class GreedyResidualsVerifier(CarrierVerifier):
    """White-box verifier of [`GreedyResidualsTrainer`]'s mark; see [`GreedyResidualsConfig`]."""

    config_class = GreedyResidualsConfig

    def __init__(self, claim: Claim):
        super().__init__(claim)
        refuse_small(self.config, self.carriers, self.subkeys)

    def members(self, subkey: SubKey) -> Groups:
        return place_groups(subkey, self.carriers, self.config.bits, self.config.group_size, self.subkeys)

    def reduce(self, values: torch.Tensor) -> torch.Tensor:
        return greedy_mean(values, self.config.kept_fraction)

    def signs(self, subkey: SubKey) -> torch.Tensor:
        return signs(subkey, self.config.bits)

    def observe(self, suspect: Suspect, subkey: SubKey, check: Check = Check()) -> torch.Tensor | PartialReading:
        """As every [`~verification.carriers.CarrierVerifier`]; with preset `paper` the raw stem."""
        if self.config.preset != "paper":
            return super().observe(suspect, subkey, check)
        return read_weight(suspect.weights, self.placing(suspect).found[0]).detach().cpu()

    def extract(self, observation: torch.Tensor, subkey: SubKey) -> torch.Tensor:
        """Residuals `[bits]` under this sub-key."""
        if self.config.preset == "paper":
            return paper_residuals(observation, subkey, self.config.kept_fraction)
        return read_residuals(observation, self.members(subkey), self.config.kept_fraction)

    def score_rows(self, rows: torch.Tensor, subkey: SubKey) -> Evidence:
        return self.score_bits(self.extract(rows, subkey), subkey)[0]
