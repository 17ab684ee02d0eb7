"""Reads WaterMAS marks from tensors; needs neither the model class nor a forward pass."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ...evidence import Evidence
from ...keys import Claim, SubKey
from ...suspects import Suspect
from ...verification.carriers import CarrierVerifier
from .config import WaterMASConfig
from .substitution import (
    Places,
    code_length,
    decode_payload,
    encode_payload,
    evidence_symbols,
    payload_mask,
    place_symbols,
    refuse_crowded,
    symbol_count,
)


@dataclass(frozen=True)
class Symbols:
    """Evidence bits of one sub-key as [`~verification.ranged.Members`]: one weight each."""

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


class WaterMASVerifier(CarrierVerifier):
    """White-box verifier of [`WaterMASTrainer`]'s mark; see [`WaterMASConfig`]."""

    config_class = WaterMASConfig

    def __init__(self, claim: Claim):
        super().__init__(claim)
        refuse_crowded(self.config, self.carriers, self.subkeys)

    def places(self, subkey: SubKey) -> Places:
        """Where the weights of a sub-key lie, those of its evidence bits first."""
        return place_symbols(subkey, self.carriers, symbol_count(self.config), self.subkeys)

    def members(self, subkey: SubKey) -> Symbols:
        places, bits = self.places(subkey), self.config.bits
        return Symbols(places.carrier[:bits], places.row[:bits], places.column[:bits, None])

    def reduce(self, values: torch.Tensor) -> torch.Tensor:
        return values[:, 0]

    def signs(self, subkey: SubKey) -> torch.Tensor:
        return evidence_symbols(subkey, self.config)

    def score_rows(self, rows: torch.Tensor, subkey: SubKey) -> Evidence:
        places = self.places(subkey)
        carrier = places.carrier[: self.config.bits]
        evidence, legible, right = self.score_bits(rows[places.positions[: self.config.bits]], subkey)
        errors = self._by_layer(carrier[legible], ~right[legible])
        return replace(evidence, details=evidence.details | {"bit_errors": errors})

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
            read = self.rows(suspect, subkey)[self.places(subkey).positions[config.bits :]]
            said = read.nan_to_num(0, 0, 0).clamp(-1, 1) * payload_mask(subkey, config)
            votes += said.reshape(-1, config.repetition).sum(dim=1)
        bits = (votes > 0).numpy().astype(np.uint8)
        committed = np.unpackbits(np.frombuffer(encode_payload(config.payload), dtype=np.uint8))
        payload = decode_payload(np.packbits(bits).tobytes(), len(config.payload))
        return PayloadReading(payload, int((bits != committed).sum()), len(bits))
