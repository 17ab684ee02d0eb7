"""
Reads the mark of a remote checkpoint a few row ranges at a time, and stops when enough is known.

Every row of every carrier may hold bits, but far fewer bits than there are decide a case. Which rows are read first follows from a stream of
the key that no bit depends on, so nobody can spoil just those; and the e-value of the bits seen so far is valid wherever the reading stops
(PROTOCOL.md §3.7 and §3.8).
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch

from ..backbones import Carrier, canonical_form, find_places
from ..backbones.families import Found
from ..evidence import Access, Check, Evidence, level_limit, single
from ..statistics import charge_looks, log2_binomial_tail, log2_e_beta_mixture, log2_p_from_log2_e
from ..suspects.remote import Part, RemoteSafetensors
from .portions import LEAST_BYTES, MOST_BYTES, Block, plan_readings


# The first reading takes this share of the checkpoint, its headers included, in this many requests. It is the only one where the
# mark is intact, and where there is none.
SHARE, REQUESTS = 0.028, 12
# PROTOCOL.md §3.8: reading on is futile where a mark of which this share of the bits is right is 2^10 times less likely than none,
WEAK_MARK, FUTILE = 0.7, -10.0
# unless one sub-key has this much evidence of its own: a spoilt one must not end the reading of a sound one.
HOPE = 5.0
# Bits beyond the level at which reading stops, for looks that are charged later.
SPARE = 4.0
EXACT = "the key's bits are independent of the suspect: matches ~ Bin(n, 1/2), exact"
SEQUENTIAL = "the key's bits are independent of the suspect: beta-mixture e-value, p <= 1/E wherever the reading stops"


@dataclass(frozen=True)
class Stops:
    """
    When reading by range begins to be enough, or futile. All of it is fixed before the first range, and the e-value is valid wherever it ends.

    Args:
        enough (`float`, *optional*):
            log2 of the e-value that suffices; by default what a verdict needs.
        futile (`float`):
            log2 of the likelihood of a weak mark against none below which reading ends.
        share (`float`):
            Of the checkpoint that the first reading takes, its headers included.
        least (`int`):
            Bytes that it takes at least.
    """

    enough: float | None = None
    futile: float = FUTILE
    share: float = SHARE
    least: int = LEAST_BYTES


class Members(Protocol):
    """Where each bit of one sub-key lies: carrier number and row, `[bits]`, and eligible columns `[bits, size]`."""

    @property
    def carrier(self) -> torch.Tensor: ...
    @property
    def row(self) -> torch.Tensor: ...
    @property
    def columns(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class PartialReading:
    """
    What was read of one sub-key.

    Args:
        values (`torch.Tensor`):
            `[bits]`: what says each bit, by its sign; 0 where nothing was read.
        read (`torch.Tensor`):
            `[bits]` (bool).
        requests, bytes_read (`int`):
            What all sub-keys together have cost, headers included.
        looks (`int`):
            Tests that this reading may end in, fixed by the headers alone: 1 where everything is read at once, else 2 (the e-value where it
            stops early, the exact test at the end).
        complete (`bool`):
            Whether nothing is left to read.
    """

    values: torch.Tensor
    read: torch.Tensor
    requests: int
    bytes_read: int
    looks: int
    complete: bool


class RangedReader:
    """
    What says the bits of several sub-keys, from a remote checkpoint, growing with every call of [`RangedReader.read_on`].

    Memory stays below twice [`~verification.portions.MOST_BYTES`], however large the checkpoint is.

    Args:
        weights ([`~suspects.remote.RemoteSafetensors`]):
            The checkpoint.
        carriers (`list[Carrier]`):
            Layout of the key.
        owned (`list[Block]`):
            The rows to read, see [`~verification.portions.owned_blocks`].
        order (`random.Random`):
            Draws which rows are read first.
        members (`Sequence[Members]`):
            Where the bits of each sub-key lie.
        reduce (`Callable`):
            From canonical weights `[n, size]` to what says a bit, `[n]`.
        found (`Sequence[Found]`, *optional*):
            Where the carriers lie, see [`~backbones.find_places`]; in the first place that fits by default.
        stops ([`Stops`], *optional*):
            How much is read first.
    """

    def __init__(
        self,
        weights: RemoteSafetensors,
        carriers: list[Carrier],
        owned: list[Block],
        order: random.Random,
        members: Sequence[Members],
        reduce: Callable[[torch.Tensor], torch.Tensor],
        found: Sequence[Found] | None = None,
        stops: Stops = Stops(),
    ):
        self.stops = stops
        self.weights, self.carriers, self.members, self.reduce = weights, carriers, members, reduce
        self.found = found or find_places(carriers, weights.shapes)[0].found
        self.values = [torch.zeros(len(own.row)) for own in members]
        self.read = [torch.zeros(len(own.row), dtype=torch.bool) for own in members]
        row_bytes = [weights.row_bytes(found.weight) for found in self.found]
        readings = list(plan_readings(row_bytes, owned, *self._first_reading(), order))
        self._left, self.looks = readings, min(2, len(readings))

    def read_on(self) -> bool:
        """The next reading; `False` when there is none left."""
        if not self._left:
            return False
        blocks = self._left.pop(0)
        for _, together in groupby(blocks, lambda block: block.carrier):
            self._read_blocks(list(together))
        return True

    def _read_blocks(self, blocks: list[Block]) -> None:
        """Blocks of one carrier."""
        tensors = self.weights.fetch([part for block in blocks for part in self._parts(block)])
        for block in blocks:
            stored = [tensors.pop(part) for part in self._parts(block)]
            rows = canonical_form(self.carriers[block.carrier], stored[0], stored[1] if stored[1:] else None)
            for own, said, read in zip(self.members, self.values, self.read, strict=True):
                here = (own.carrier == block.carrier) & (own.row >= block.start) & (own.row < block.stop)
                said[here] = self.reduce(rows[own.row[here] - block.start].gather(1, own.columns[here]))
                read[here] = True

    def result(self, place: int) -> PartialReading:
        """What is known of the `place`-th sub-key."""
        weights = self.weights
        return PartialReading(
            self.values[place], self.read[place], weights.requests, weights.bytes_read, self.looks, not self._left
        )

    def _parts(self, block: Block) -> list[Part]:
        found = self.found[block.carrier]
        return [Part(name, block.start, block.stop) for name in (found.weight, found.scale) if name is not None]

    def _first_reading(self) -> tuple[int, int]:
        """Bytes and number of blocks of the first reading."""
        weights = self.weights
        allowed = int(self.stops.share * weights.size) - weights.bytes_read
        requests_each = 2 if any(found.scale for found in self.found) else 1
        blocks = max(1, (REQUESTS - weights.requests) // requests_each)
        return min(max(allowed, self.stops.least), MOST_BYTES), min(blocks, 4)


def read_until_decided(
    reader: RangedReader,
    score: Callable[[PartialReading, int], Evidence],
    check: Check,
    counted: Sequence[int],
    stops: Stops = Stops(),
) -> list[PartialReading]:
    """
    Reads on until the e-value of all sub-keys suffices for the verdict, or more is futile ([`FUTILE`], [`HOPE`]).

    Args:
        score (`Callable`):
            Evidence of a reading of the sub-key at this place, see [`score_reading`].
        check ([`~evidence.Check`]):
            What the verifier decided beforehand.
        counted (`Sequence[int]`):
            Places of the sub-keys that may add evidence: those that were not disclosed.
        stops ([`Stops`], *optional*):
            When it is enough, or futile.

    Returns:
        `list[PartialReading]`: one for each sub-key, also for those that do not count.
    """
    needed = SPARE + math.log2(check.looks) - level_limit(check.bound)
    enough = needed if stops.enough is None else stops.enough
    parts: list[PartialReading] = []
    while reader.read_on():
        parts = [reader.result(place) for place in range(len(reader.members))]
        seen = [score(parts[place], place) for place in counted]
        right, read = sum(part.matches for part in seen), sum(part.trials for part in seen)
        weak = right * math.log2(WEAK_MARK / 0.5) + (read - right) * math.log2((1 - WEAK_MARK) / 0.5)
        values = [part.log2_e for part in seen]
        if sum(values) >= enough or (weak <= stops.futile and max(values) < HOPE):
            break
    return parts


def legible_bits(read: torch.Tensor, signs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Masks of the bits that say anything and of those among them that are right, both `[bits]`. Zeros (pruned, not read, or not recognised by an
    alignment) and what is not finite say nothing. Which ones are does not depend on the key's bits.
    """
    legible = read.isfinite() & (read != 0)
    return legible, (read * signs > 0) & legible


def score_reading(method: str, reading: PartialReading, signs: torch.Tensor) -> Evidence:
    """The test of the bits that were read against a key's (or a decoy's), +-1 `[bits]`."""
    legible, right = legible_bits(reading.values, signs)
    matches, trials = int(right.sum()), int(legible.sum())
    log2_e = log2_e_beta_mixture(matches, trials, 0.5)
    log2_p, null = log2_p_from_log2_e(log2_e), SEQUENTIAL
    if reading.complete:
        log2_p, null = log2_binomial_tail(matches, trials), EXACT
    # Where reading may end in either of two tests, each has half of the error.
    log2_p = charge_looks(log2_p, reading.looks)
    return single(
        method,
        matches,
        trials,
        log2_p,
        null,
        Access.WEIGHTS,
        log2_e=log2_e,
        details={
            "bits_read": int(reading.read.sum()),
            "bits": len(reading.read),
            "bytes_read": reading.bytes_read,
            "requests": reading.requests,
        },
    )
