"""Reads greedy residuals from tensors; needs neither the model class nor a forward pass."""

from functools import partial
from typing import ClassVar

import torch

from ...backbones import canonical_rows, read_carriers
from ...evidence import Access, Evidence, single
from ...hub.remote import RemoteSafetensors
from ...keys import Claim, SubKey
from ...ranged import EXACT, PartialReading, RangedReader, read_until_decided, score_reading
from ...statistics import log2_binomial_tail, log2_e_beta_mixture
from ...suspects import Suspect
from ...verifier import Verifier
from .config import GreedyResidualsConfig
from .residuals import (
    Groups,
    greedy_mean,
    own_rows,
    paper_residuals,
    place_groups,
    raw_weight,
    read_residuals,
    refuse_small,
    signs,
)


class GreedyResidualsVerifier(Verifier[torch.Tensor | PartialReading]):
    """
    White-box verifier of [`GreedyResidualsTrainer`]'s mark; reads only the carrier tensors and the scale vectors behind them. Of a remote
    checkpoint it reads row ranges until the e-value of all sub-keys suffices for the verdict, or shows that more reading is futile.
    """

    method: ClassVar[str] = "greedy_residuals"
    access = Access.WEIGHTS
    config_class = GreedyResidualsConfig

    def __init__(self, claim: Claim):
        super().__init__(claim)
        self.carriers = read_carriers(self.layout)
        refuse_small(self.config, self.carriers, len(claim.assignment.subkeys))
        self._seen: tuple[Suspect, dict[str, torch.Tensor] | list[PartialReading]] | None = None

    def observe(self, suspect: Suspect, subkey: SubKey) -> torch.Tensor | PartialReading:
        """
        The canonical rows of the sub-key's slot laid end to end (with preset `paper` the raw stem); of a remote checkpoint the residuals
        of the rows that were read. There the reading stops by the bits seen so far, which the e-value allows.
        """
        # The tensors do not depend on the sub-key, so they are read once for all of them.
        if self._seen is None or self._seen[0] is not suspect:
            self._seen = suspect, self._read(suspect)
        seen = self._seen[1]
        if isinstance(seen, list):
            return seen[self.claim.subkeys.index(subkey)]
        if self.config.preset == "paper":
            return seen[self.carriers[0].role]
        return own_rows(seen, subkey.slot, len(self.claim.assignment.subkeys))

    def _read(self, suspect: Suspect) -> dict[str, torch.Tensor] | list[PartialReading]:
        with torch.no_grad():
            if self.config.preset == "paper":
                return {c.role: raw_weight(c, suspect.weights, suspect.shapes).cpu() for c in self.carriers}
            if isinstance(suspect.weights, RemoteSafetensors):
                return self._read_ranges(suspect.weights)
            return {c.role: canonical_rows(c, suspect.weights, suspect.shapes).cpu() for c in self.carriers}

    def _read_ranges(self, weights: RemoteSafetensors) -> list[PartialReading]:
        subkeys = self.claim.subkeys
        mean = partial(greedy_mean, kept_fraction=self.config.kept_fraction)
        reader = RangedReader(weights, self.carriers, [self._groups(subkey) for subkey in subkeys], mean)
        return read_until_decided(reader, lambda part, place: self.score(part, subkeys[place]), self.bound)

    def _groups(self, subkey: SubKey) -> Groups:
        subkeys = len(self.claim.assignment.subkeys)
        return place_groups(subkey, self.carriers, self.config.bits, self.config.group_size, subkeys)

    def extract(self, observation: torch.Tensor, subkey: SubKey) -> torch.Tensor:
        """Residuals `[bits]` under this sub-key."""
        if self.config.preset == "paper":
            return paper_residuals(observation, subkey, self.config.kept_fraction)
        return read_residuals(observation, self._groups(subkey), self.config.kept_fraction)

    def score(self, observation: torch.Tensor | PartialReading, subkey: SubKey) -> Evidence:
        if isinstance(observation, PartialReading):
            # The places stay, only the bits are read: a decoy costs no request.
            return score_reading(self.method, observation, signs(subkey, self.config.bits))
        phi = self.extract(observation, subkey)
        # A group of zeros (pruned, or not recognised by an alignment) says nothing. Which ones are does not depend on the key's bits.
        # A residual that is not finite is a mismatch, which can only lower the count.
        legible = phi != 0
        matches = int((signs(subkey, self.config.bits) * phi > 0)[legible].sum())
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
