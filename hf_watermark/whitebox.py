"""What verifiers of marks in carrier tensors share: which rows are read, once for all sub-keys, and only as many as it takes."""

from abc import abstractmethod

import torch

from .backbones import canonical_rows, own_rows, read_carriers
from .evidence import Access, Check, Evidence, single
from .hub.remote import RemoteSafetensors
from .keys import Claim, SubKey
from .ranged import Members, PartialReading, RangedReader, owned_blocks, read_until_decided, score_reading
from .statistics import log2_binomial_tail, log2_e_beta_mixture
from .suspects import Suspect
from .verifier import Verifier, digest_of


NULL = "the key's bits are independent of the suspect: matches of the n bits that say anything ~ Bin(n, 1/2), exact"


class CarrierVerifier(Verifier[torch.Tensor | PartialReading]):
    """
    White-box verifier that reads the carrier tensors and the scale vectors behind them, and nothing else. Of a remote checkpoint it reads row
    ranges until the e-value of all sub-keys suffices for the verdict, or shows that more reading is futile, which the e-value allows.
    """

    access = Access.WEIGHTS
    reads_coordinates = True

    def __init__(self, claim: Claim):
        super().__init__(claim)
        self.carriers = read_carriers(self.layout)
        self.subkeys = len(claim.assignment.subkeys)
        # The tensors do not depend on the sub-key, so they are read once for all of them.
        self._rows: tuple[Suspect, dict[str, torch.Tensor]] | None = None
        self._parts: tuple[Suspect, list[PartialReading]] | None = None

    @abstractmethod
    def members(self, subkey: SubKey) -> Members:
        """Where the bits of a sub-key lie."""

    @abstractmethod
    def reduce(self, values: torch.Tensor) -> torch.Tensor:
        """From the canonical weights of the members `[n, size]` to what says a bit, `[n]`."""

    @abstractmethod
    def signs(self, subkey: SubKey) -> torch.Tensor:
        """The key's bits as +-1, `[bits]`."""

    @abstractmethod
    def score_rows(self, rows: torch.Tensor, subkey: SubKey) -> Evidence:
        """The exact test of one sub-key on all of its rows."""

    def observe(self, suspect: Suspect, subkey: SubKey, check: Check = Check()) -> torch.Tensor | PartialReading:
        """The canonical rows of the sub-key's slot laid end to end; of a remote checkpoint what says each bit, where it was read."""
        if not isinstance(suspect.weights, RemoteSafetensors):
            return self.rows(suspect, subkey)
        if self._parts is None or self._parts[0] is not suspect:
            subkeys = self.claim.subkeys
            with torch.no_grad():
                owned = owned_blocks(self.carriers, [subkey.slot for subkey in subkeys], self.subkeys)
                members = list(map(self.members, subkeys))
                reader = RangedReader(suspect.weights, self.carriers, owned, members, self.reduce)
                counted = [place for place, own in enumerate(subkeys) if own.index not in check.disclosed]
                parts = read_until_decided(
                    reader,
                    lambda part, place: self.score(part, subkeys[place]),
                    check,
                    counted or range(len(subkeys)),
                )
            self._parts = suspect, parts
        return self._parts[1][self.claim.subkeys.index(subkey)]

    def fingerprint(self, observation: torch.Tensor | PartialReading) -> bytes:
        if isinstance(observation, PartialReading):
            return digest_of(observation.values, observation.read)
        return digest_of(observation)

    def rows(self, suspect: Suspect, subkey: SubKey) -> torch.Tensor:
        """The canonical rows of the sub-key's slot laid end to end."""
        if self._rows is None or self._rows[0] is not suspect:
            with torch.no_grad():
                rows = {c.role: canonical_rows(c, suspect.weights, suspect.shapes).cpu() for c in self.carriers}
            self._rows = suspect, rows
        return own_rows(self._rows[1], subkey.slot, self.subkeys)

    def score(self, observation: torch.Tensor | PartialReading, subkey: SubKey) -> Evidence:
        if isinstance(observation, PartialReading):
            # The places stay, only the bits are read: a decoy costs no request.
            return score_reading(self.method, observation, self.signs(subkey))
        return self.score_rows(observation, subkey)

    def score_bits(self, read: torch.Tensor, subkey: SubKey) -> tuple[Evidence, torch.Tensor, torch.Tensor]:
        """
        The exact test of what says each bit, `[bits]`, with the masks of the bits that say anything and of those that are right. Zeros (pruned,
        or not recognised by an alignment) and what is not finite say nothing. Which ones are does not depend on the key's bits.
        """
        legible = read.isfinite() & (read != 0)
        right = (read * self.signs(subkey) > 0) & legible
        matches, trials = int(right.sum()), int(legible.sum())
        evidence = single(
            self.method,
            matches,
            trials,
            log2_binomial_tail(matches, trials) if trials else 0.0,
            NULL,
            self.access,
            log2_e=log2_e_beta_mixture(matches, trials, 0.5) if trials else 0.0,
            details={
                "bit_error_rate": round(1 - matches / trials, 4) if trials else 0.0,
                "erased": len(read) - trials,
            },
        )
        return evidence, legible, right
