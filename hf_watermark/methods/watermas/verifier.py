"""Reads WaterMAS marks from tensors; needs neither the model class nor a forward pass."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ...backbones import canonical_rows, read_carriers
from ...evidence import Access, Evidence, single
from ...hub.remote import RemoteSafetensors
from ...keys import Claim, SubKey
from ...ranged import PartialReading, RangedReader, read_until_decided, score_reading
from ...statistics import log2_binomial_tail, log2_e_beta_mixture
from ...suspects import Suspect
from ...verifier import Verifier
from .config import WaterMASConfig
from .substitution import (
    Places,
    code_length,
    decode_payload,
    encode_payload,
    evidence_symbols,
    own_rows,
    payload_mask,
    place_symbols,
    refuse_crowded,
    symbol_count,
)


NULL = (
    "the key's bits are independent of the suspect: matches of the n carriers that are not zero ~ Bin(n, 1/2), exact"
)


@dataclass(frozen=True)
class Symbols:
    """Evidence bits of one sub-key as [`~ranged.Members`]: one weight each."""

    carrier: torch.Tensor
    row: torch.Tensor
    columns: torch.Tensor


@dataclass(frozen=True)
class PayloadReading:
    """
    The payload as a suspect's weights say it.

    Args:
        payload (`bytes`, *optional*):
            What error correction recovered; `None` when too much is wrong.
        wrong_bits, bits (`int`):
            Bits of the code word that are not the committed ones, after the vote over copies and sub-keys, and their number.
    """

    payload: bytes | None
    wrong_bits: int
    bits: int


class WaterMASVerifier(Verifier[torch.Tensor | PartialReading]):
    """
    White-box verifier of [`WaterMASTrainer`]'s mark; reads only the carrier tensors and the scale vectors behind them. Of a remote
    checkpoint it reads row ranges until the e-value of all sub-keys suffices for the verdict, or shows that more reading is futile.
    """

    method: ClassVar[str] = "watermas"
    access = Access.WEIGHTS
    config_class = WaterMASConfig

    def __init__(self, claim: Claim):
        super().__init__(claim)
        self.carriers = read_carriers(self.layout)
        self.subkeys = len(claim.assignment.subkeys)
        refuse_crowded(self.config, self.carriers, self.subkeys)
        self._seen: tuple[Suspect, dict[str, torch.Tensor]] | None = None
        self._parts: tuple[Suspect, list[PartialReading]] | None = None

    def places(self, subkey: SubKey) -> Places:
        return place_symbols(subkey, self.carriers, symbol_count(self.config), self.subkeys)

    def observe(self, suspect: Suspect, subkey: SubKey) -> torch.Tensor | PartialReading:
        """The canonical rows of the sub-key's slot laid end to end; of a remote checkpoint the weights that were read."""
        if isinstance(suspect.weights, RemoteSafetensors):
            if self._parts is None or self._parts[0] is not suspect:
                with torch.no_grad():
                    self._parts = suspect, self._read_ranges(suspect.weights)
            return self._parts[1][self.claim.subkeys.index(subkey)]
        return self._rows(suspect, subkey)

    def _rows(self, suspect: Suspect, subkey: SubKey) -> torch.Tensor:
        # The tensors do not depend on the sub-key, so they are read once for all of them.
        if self._seen is None or self._seen[0] is not suspect:
            with torch.no_grad():
                rows = {c.role: canonical_rows(c, suspect.weights, suspect.shapes).cpu() for c in self.carriers}
            self._seen = suspect, rows
        return own_rows(self._seen[1], subkey.slot, self.subkeys)

    def _read_ranges(self, weights: RemoteSafetensors) -> list[PartialReading]:
        subkeys, bits = self.claim.subkeys, self.config.bits
        places = [self.places(subkey) for subkey in subkeys]
        members = [Symbols(own.carrier[:bits], own.row[:bits], own.column[:bits, None]) for own in places]
        reader = RangedReader(weights, self.carriers, members, lambda values: values[:, 0])
        return read_until_decided(reader, lambda part, place: self.score(part, subkeys[place]), self.bound)

    def score(self, observation: torch.Tensor | PartialReading, subkey: SubKey) -> Evidence:
        """
        A weight that is zero or not finite, a pruned one say, has no sign. Which ones are does not depend on the key's bits, so the test runs over
        the others alone.
        """
        if isinstance(observation, PartialReading):
            # The places stay, only the bits are read: a decoy costs no request.
            return score_reading(self.method, observation, evidence_symbols(subkey, self.config))
        places = self.places(subkey)
        read = observation[places.positions[: self.config.bits]]
        legible = read.isfinite() & (read != 0)
        right = (read * evidence_symbols(subkey, self.config) > 0) & legible
        matches, trials = int(right.sum()), int(legible.sum())
        return single(
            self.method,
            matches,
            trials,
            log2_binomial_tail(matches, trials) if trials else 0.0,
            NULL,
            self.access,
            log2_e=log2_e_beta_mixture(matches, trials, 0.5) if trials else 0.0,
            details={
                "bit_error_rate": round(1 - matches / trials, 4) if trials else 0.0,
                "erased": self.config.bits - trials,
                "bit_errors": self._by_layer(places.carrier[: self.config.bits][legible], ~right[legible]),
            },
        )

    def _by_layer(self, carrier: torch.Tensor, wrong: torch.Tensor) -> dict[str, list[int]]:
        """`[errors, bits]` by role."""
        every = torch.bincount(carrier, minlength=len(self.carriers))
        errors = torch.bincount(carrier[wrong], minlength=len(self.carriers))
        counts = zip(self.carriers, errors.tolist(), every.tolist(), strict=True)
        return {item.role: [errors, bits] for item, errors, bits in counts if bits}

    def read_payload(self, suspect: Suspect) -> PayloadReading | None:
        """
        The payload by a vote over all copies in all disclosed sub-keys, then error correction; `None` when the key has none. Only its length
        is taken from the key.
        """
        config = self.config
        if not config.payload:
            return None
        suspect.require(self.access, self.method)
        votes = torch.zeros(8 * code_length(len(config.payload)))
        for subkey in self.claim.subkeys:
            read = self._rows(suspect, subkey)[self.places(subkey).positions[config.bits :]]
            said = read.nan_to_num(0, 0, 0).clamp(-1, 1) * payload_mask(subkey, config)
            votes += said.reshape(-1, config.repetition).sum(dim=1)
        bits = (votes > 0).numpy().astype(np.uint8)
        committed = np.unpackbits(np.frombuffer(encode_payload(config.payload), dtype=np.uint8))
        payload = decode_payload(np.packbits(bits).tobytes(), len(config.payload))
        return PayloadReading(payload, int((bits != committed).sum()), len(bits))
