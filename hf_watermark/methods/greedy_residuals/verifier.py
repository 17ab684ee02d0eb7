"""Reads greedy residuals from tensors; needs neither the model class nor a forward pass."""

from typing import ClassVar

import torch

from ...backbones import canonical_rows, read_carriers
from ...evidence import Access, Evidence, single
from ...keys import Claim, SubKey
from ...statistics import log2_binomial_tail, log2_e_beta_mixture
from ...suspects import Suspect
from ...verifier import Verifier
from .config import GreedyResidualsConfig
from .residuals import own_rows, paper_residuals, place_groups, raw_weight, read_residuals, refuse_small, signs


NULL = "the key's bits are independent of the suspect: matches ~ Bin(n, 1/2), exact"


class GreedyResidualsVerifier(Verifier[torch.Tensor]):
    """White-box verifier of [`GreedyResidualsTrainer`]'s mark; reads only the carrier tensors and the scale vectors behind them."""

    method: ClassVar[str] = "greedy_residuals"
    access = Access.WEIGHTS
    config_class = GreedyResidualsConfig

    def __init__(self, claim: Claim):
        super().__init__(claim)
        self.carriers = read_carriers(self.layout)
        refuse_small(self.config, self.carriers, len(claim.assignment.subkeys))
        self._seen: tuple[Suspect, dict[str, torch.Tensor]] | None = None

    def observe(self, suspect: Suspect, subkey: SubKey) -> torch.Tensor:
        """The canonical rows of the sub-key's slot laid end to end; with preset `paper` the raw stem."""
        # The tensors do not depend on the sub-key, so they are read once for all of them.
        if self._seen is None or self._seen[0] is not suspect:
            read = raw_weight if self.config.preset == "paper" else canonical_rows
            with torch.no_grad():
                rows = {c.role: read(c, suspect.weights, suspect.shapes).cpu() for c in self.carriers}
            self._seen = suspect, rows
        rows = self._seen[1]
        if self.config.preset == "paper":
            return rows[self.carriers[0].role]
        return own_rows(rows, subkey.slot, len(self.claim.assignment.subkeys))

    def extract(self, observation: torch.Tensor, subkey: SubKey) -> torch.Tensor:
        """Residuals `[bits]` under this sub-key."""
        if self.config.preset == "paper":
            return paper_residuals(observation, subkey, self.config.kept_fraction)
        subkeys = len(self.claim.assignment.subkeys)
        groups = place_groups(subkey, self.carriers, self.config.bits, self.config.group_size, subkeys)
        return read_residuals(observation, groups, self.config.kept_fraction)

    def score(self, observation: torch.Tensor, subkey: SubKey) -> Evidence:
        phi = self.extract(observation, subkey)
        # A zero or non-finite residual is a mismatch by definition, which can only lower the count.
        matches = int((signs(subkey, self.config.bits) * phi > 0).sum())
        trials = self.config.bits
        return single(
            self.method,
            matches,
            trials,
            log2_binomial_tail(matches, trials),
            NULL,
            self.access,
            log2_e=log2_e_beta_mixture(matches, trials, 0.5),
            details={"bit_error_rate": round(1 - matches / trials, 4)},
        )
