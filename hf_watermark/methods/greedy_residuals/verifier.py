"""Reads greedy residuals from tensors; needs neither the model class nor a forward pass."""

from typing import ClassVar

import torch

from ...backbones import canonical_rows, read_carriers
from ...evidence import LEVEL_B, LEVEL_N, Access, Evidence, single
from ...hub.remote import RemoteSafetensors
from ...keys import Claim, SubKey
from ...statistics import charge_looks, log2_binomial_tail, log2_e_beta_mixture, log2_p_from_log2_e
from ...suspects import Suspect
from ...verifier import Verifier
from .config import GreedyResidualsConfig
from .ranged import FUTILE, PartialResiduals, RangedReader
from .residuals import Groups, own_rows, paper_residuals, place_groups, raw_weight, read_residuals, refuse_small, signs


NULL = "the key's bits are independent of the suspect: matches ~ Bin(n, 1/2), exact"
SEQUENTIAL = "the key's bits are independent of the suspect: beta-mixture e-value, p <= 1/E wherever the reading stops"
# Bits beyond the level at which reading stops, for looks that are charged later.
SPARE = 4.0


class GreedyResidualsVerifier(Verifier[torch.Tensor | PartialResiduals]):
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
        self._seen: tuple[Suspect, dict[str, torch.Tensor] | list[PartialResiduals]] | None = None

    def observe(self, suspect: Suspect, subkey: SubKey) -> torch.Tensor | PartialResiduals:
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

    def _read(self, suspect: Suspect) -> dict[str, torch.Tensor] | list[PartialResiduals]:
        with torch.no_grad():
            if self.config.preset == "paper":
                return {c.role: raw_weight(c, suspect.weights, suspect.shapes).cpu() for c in self.carriers}
            if isinstance(suspect.weights, RemoteSafetensors):
                return self._read_ranges(suspect.weights)
            return {c.role: canonical_rows(c, suspect.weights, suspect.shapes).cpu() for c in self.carriers}

    def _read_ranges(self, weights: RemoteSafetensors) -> list[PartialResiduals]:
        groups = [self._groups(subkey) for subkey in self.claim.subkeys]
        reader = RangedReader(weights, self.carriers, groups, self.config.kept_fraction)
        enough = SPARE - (LEVEL_B if self.bound else LEVEL_N)
        parts: list[PartialResiduals] = []
        while reader.read_on():
            parts = [reader.result(place) for place in range(len(groups))]
            log2_e = sum(
                self.score(part, subkey).log2_e for part, subkey in zip(parts, self.claim.subkeys, strict=True)
            )
            if log2_e >= enough or log2_e <= FUTILE:
                break
        return parts

    def _groups(self, subkey: SubKey) -> Groups:
        subkeys = len(self.claim.assignment.subkeys)
        return place_groups(subkey, self.carriers, self.config.bits, self.config.group_size, subkeys)

    def extract(self, observation: torch.Tensor, subkey: SubKey) -> torch.Tensor:
        """Residuals `[bits]` under this sub-key."""
        if self.config.preset == "paper":
            return paper_residuals(observation, subkey, self.config.kept_fraction)
        return read_residuals(observation, self._groups(subkey), self.config.kept_fraction)

    def score(self, observation: torch.Tensor | PartialResiduals, subkey: SubKey) -> Evidence:
        if isinstance(observation, PartialResiduals):
            return self._score_part(observation, subkey)
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

    def _score_part(self, observation: PartialResiduals, subkey: SubKey) -> Evidence:
        # The places stay, only the bits are read: a decoy costs no request.
        right = signs(subkey, self.config.bits) * observation.phi > 0
        matches, trials = int(right[observation.read].sum()), int(observation.read.sum())
        log2_e = log2_e_beta_mixture(matches, trials, 0.5)
        log2_p, null = log2_p_from_log2_e(log2_e), SEQUENTIAL
        if observation.complete:
            # The exact test after all; where reading could have stopped before, it is the second of two tests.
            log2_p, null = charge_looks(log2_binomial_tail(matches, trials), min(observation.looks, 2)), NULL
        return single(
            self.method,
            matches,
            trials,
            log2_p,
            null,
            self.access,
            log2_e=log2_e,
            details={
                "bits_read": trials,
                "bits": self.config.bits,
                "bytes_read": observation.bytes_read,
                "requests": observation.requests,
            },
        )
