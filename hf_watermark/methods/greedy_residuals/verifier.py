"""Reads greedy residuals from tensors; needs neither the model class nor a forward pass."""

from typing import ClassVar

import torch

from ...evidence import Evidence, single
from ...keys import Claim, SubKey
from ...ranged import EXACT, PartialReading
from ...statistics import log2_binomial_tail, log2_e_beta_mixture
from ...suspects import Suspect
from ...whitebox import CarrierVerifier
from .config import GreedyResidualsConfig
from .residuals import (
    Groups,
    greedy_mean,
    paper_residuals,
    place_groups,
    raw_weight,
    read_residuals,
    refuse_small,
    signs,
)


class GreedyResidualsVerifier(CarrierVerifier):
    """White-box verifier of [`GreedyResidualsTrainer`]'s mark."""

    method: ClassVar[str] = "greedy_residuals"
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

    def observe(self, suspect: Suspect, subkey: SubKey) -> torch.Tensor | PartialReading:
        """As every [`~whitebox.CarrierVerifier`]; with preset `paper` the raw stem."""
        if self.config.preset != "paper":
            return super().observe(suspect, subkey)
        return raw_weight(self.carriers[0], suspect.weights, suspect.shapes).detach().cpu()

    def extract(self, observation: torch.Tensor, subkey: SubKey) -> torch.Tensor:
        """Residuals `[bits]` under this sub-key."""
        if self.config.preset == "paper":
            return paper_residuals(observation, subkey, self.config.kept_fraction)
        return read_residuals(observation, self.members(subkey), self.config.kept_fraction)

    def score_rows(self, rows: torch.Tensor, subkey: SubKey) -> Evidence:
        phi = self.extract(rows, subkey)
        # A group of zeros (pruned, or not recognised by an alignment) says nothing. Which ones are does not depend on the key's bits.
        # A residual that is not finite is a mismatch, which can only lower the count.
        legible = phi != 0
        matches = int((self.signs(subkey) * phi > 0)[legible].sum())
        trials = int(legible.sum())
        return single(
            self.method,
            matches,
            trials,
            log2_binomial_tail(matches, trials) if trials else 0.0,
            EXACT,
            self.access,
            log2_e=log2_e_beta_mixture(matches, trials, 0.5) if trials else 0.0,
            details={
                "bit_error_rate": round(1 - matches / trials, 4) if trials else 0.0,
                "erased": self.config.bits - trials,
            },
        )
