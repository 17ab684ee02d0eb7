"""
The mathematics of WaterMAS that trainer and verifier share: where the carriers lie, and what they say.

Carrier i of a sub-key is one weight; its symbol is s_i = +-1 and it is read as the sign of the canonical weight. The first `bits` symbols
are evidence, drawn from stream `bits`. The others carry the payload: its Reed-Solomon code word, every bit `repetition` times, each
copy masked by the next bit of the same stream, so that equal payloads look unrelated under different keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from reedsolo import ReedSolomonError, RSCodec

from ...backbones import Carrier, slot_rows
from ...keys import SubKey
from ...serialization import InvalidInput
from .config import MOST_PAYLOAD, WaterMASConfig


# Shares of the carrier weights that one slot may replace: at most, and where the number of sub-keys is left to us.
MOST_SHARE, USUAL_SHARE = 0.1, 0.01
HIGHEST = 0.99
BLOCK = 255


@dataclass(frozen=True)
class Places:
    """
    Where the carriers of one sub-key lie. All tensors are `[symbols]`.

    Args:
        positions (`torch.Tensor`):
            In the slot's rows laid end to end, see [`~backbones.own_rows`].
        carrier, row, column (`torch.Tensor`):
            Number of the carrier tensor, row in it, eligible column.
    """

    positions: torch.Tensor
    carrier: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor


def slot_sizes(carriers: Sequence[Carrier], slot: int, subkeys: int) -> list[int]:
    """Eligible weights of each carrier that one of `subkeys` disjoint slots owns."""
    return [
        len(slot_rows(number, carrier.rows, slot, subkeys)) * carrier.eligible
        for number, carrier in enumerate(carriers)
    ]


def place_symbols(subkey: SubKey, carriers: Sequence[Carrier], count: int, subkeys: int) -> Places:
    """`count` different weights of the slot's rows, in the order of [`~keys.Stream.distinct`] from stream `carrier`."""
    sizes = np.array(slot_sizes(carriers, subkey.slot, subkeys))
    positions = subkey.stream("carrier").distinct(int(sizes.sum()), count)
    ends = sizes.cumsum()
    number = np.searchsorted(ends, positions, side="right")
    eligible = np.array([carrier.eligible for carrier in carriers])[number]
    row, column = np.divmod(positions - (ends - sizes)[number], eligible)
    first = [slot_rows(place, carrier.rows, subkey.slot, subkeys).start for place, carrier in enumerate(carriers)]
    return Places(*map(torch.from_numpy, (positions, number, np.array(first)[number] + row, column)))


# Symbols


def symbol_count(config: WaterMASConfig) -> int:
    """Carrier weights of one sub-key."""
    return config.bits + 8 * config.repetition * code_length(len(config.payload or b""))


def evidence_symbols(subkey: SubKey, config: WaterMASConfig) -> torch.Tensor:
    """The key's own bits as +-1, `[bits]`."""
    return _signs(subkey.stream("bits").bits(config.bits))


def symbols(subkey: SubKey, config: WaterMASConfig) -> torch.Tensor:
    """All symbols of one sub-key, `[symbols]`: evidence, then the masked payload."""
    evidence = evidence_symbols(subkey, config)
    if not config.payload:
        return evidence
    word = np.unpackbits(np.frombuffer(encode_payload(bytes(config.payload)), dtype=np.uint8))  # type: ignore[arg-type]
    return torch.cat([evidence, _signs(word.repeat(config.repetition)) * payload_mask(subkey, config)])


def payload_mask(subkey: SubKey, config: WaterMASConfig) -> torch.Tensor:
    """+-1 per payload symbol, the continuation of the evidence bits."""
    return _signs(subkey.stream("bits").bits(symbol_count(config))[config.bits :])


def _signs(bits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1)


# Payload


def parity(length: int) -> int:
    """Parity bytes per block: about as many as there are payload bytes, so that a fourth of the code word's bytes may be wrong."""
    return min(max(8, length), 128)


def code_length(length: int) -> int:
    """Bytes of the code word of a payload of this length."""
    return length + parity(length) * -(-length // (BLOCK - parity(length))) if length else 0


def encode_payload(payload: bytes) -> bytes:
    return bytes(RSCodec(parity(len(payload)), nsize=BLOCK).encode(payload))


def decode_payload(word: bytes, length: int) -> bytes | None:
    """The payload of this length, or `None` when too many bytes are wrong."""
    try:
        return bytes(RSCodec(parity(length), nsize=BLOCK).decode(word)[0])
    except ReedSolomonError:
        return None


def payload_capacity(config: WaterMASConfig, carriers: Sequence[Carrier], subkeys: int) -> int:
    """Most payload bytes that fit beside the evidence bits of each of `subkeys` sub-keys."""
    free = int((MOST_SHARE * poorest_slot(carriers, subkeys) - config.bits) / (8 * config.repetition))
    # The code word grows with the payload, so the longest one that fits is found by bisection.
    fits, fails = 0, MOST_PAYLOAD + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if code_length(middle) <= free else (fits, middle)
    return fits


# Capacity


def poorest_slot(carriers: Sequence[Carrier], subkeys: int) -> int:
    """Eligible weights of the poorest of `subkeys` slots."""
    return min(sum(slot_sizes(carriers, slot, subkeys)) for slot in range(subkeys))


def fitting_subkeys(carriers: Sequence[Carrier], config: WaterMASConfig) -> int:
    """The default number of sub-keys: the most (up to 8) that replace 1 % of the carrier weights; 1 if even that replaces more."""
    fitting = [n for n in range(1, 9) if symbol_count(config) <= USUAL_SHARE * poorest_slot(carriers, n)]
    return max(fitting, default=1)


def refuse_crowded(config: WaterMASConfig, carriers: Sequence[Carrier], subkeys: int) -> None:
    """Raises [`~serialization.InvalidInput`] when the sub-keys would replace more than a tenth of the carrier weights."""
    room = poorest_slot(carriers, subkeys)
    if symbol_count(config) <= MOST_SHARE * room:
        return
    most = payload_capacity(config, carriers, subkeys)
    given = f"`payload` of {len(config.payload)} bytes, " if config.payload else ""
    raise InvalidInput(
        f"{given}{config.bits} bits: {symbol_count(config)} weights per sub-key are more than a tenth of the {room} carrier weights that "
        f"each of {subkeys} sub-key(s) owns; a payload of {most} bytes fits beside these bits. Lower `bits`, `subkeys`, `repetition` or the "
        "payload, or use a larger backbone"
    )


# Values


def draw_magnitudes(
    subkey: SubKey, places: Places, weights: Sequence[torch.Tensor], lowest: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    One magnitude per carrier, `[symbols]`, float32, and the weight it is taken from, `[symbols]`, as a place in its layer's eligible weights laid
    end to end: a random weight of the carrier's own layer, drawn from stream `noise` between the quantiles `lowest` and 0.99, so that the
    values have the layer's own distribution, without its tail.

    Args:
        weights (`Sequence[torch.Tensor]`):
            The eligible raw weights of every carrier.
        lowest (`float`):
            Quantile below which no magnitude is drawn: the distance between the two symbols is at least twice that weight.
    """
    ranked = [weight.detach().float().abs().flatten().cpu().sort(stable=True) for weight in weights]
    sizes = np.array([len(layer.values) for layer in ranked])
    first = np.minimum((lowest * sizes).astype(np.int64), sizes - 1)
    spread = np.maximum((HIGHEST * sizes).astype(np.int64) - first, 1)
    carrier = places.carrier.numpy()
    rank = first[carrier] + subkey.stream("noise").below_each(spread[carrier])
    magnitudes, donors = torch.empty(len(rank)), torch.empty(len(rank), dtype=torch.int64)
    for number, layer in enumerate(ranked):
        mine = places.carrier == number
        own = torch.from_numpy(rank)[mine]
        magnitudes[mine], donors[mine] = layer.values[own], layer.indices[own]
    return magnitudes, donors
