"""Key search: a thief without a key tries many random ones and keeps the best."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..keys import SubKey, WatermarkKey, entropy
from ..mapping import AutoVerifier
from ..methods.greedy_residuals import GreedyResidualsVerifier
from ..methods.greedy_residuals.residuals import Slot, coprimes, greedy_mean, make_slot
from ..suspects import Suspect
from ..verification.verifier import Verifier
from .result import ForgeryResult, require_method


# Seeds that are looked up together: wide enough for the shuffle's loop, small enough for the cache.
BATCH = 512
# A table entry costs a third of the time in which a bit is read in the ordinary way, and one byte.
TABLE_GAIN, MAX_TABLE = 3, 200_000_000
# The chance that the best of all seeds passes the bound is 2^-20.
BOUND_BITS = 20


def search_keys(
    suspect: Any, key: WatermarkKey, count: int, method: str = "greedy_residuals", progress: bool = False
) -> ForgeryResult:
    """
    Scores `count` fresh random sub-keys under the public layout of `key` and claims with the best.

    The suspect is read once. When the layout is small and many keys are tried, the signs of all groups that a key could draw
    are tabulated first, and a key costs two streams and a look-up: about 0.1 ms instead of 1 ms.

    Args:
        suspect:
            Whatever [`verify`] takes.
        key ([`WatermarkKey`]):
            Gives the layout (config, carriers, number of sub-keys); none of its secrets is used.
        count (`int`):
            Number of seeds.
        method (`str`, *optional*, defaults to `"greedy_residuals"`):
            Which of the key's methods to attack. For `function_coupled` the questions stay and the targets are drawn again.
        progress (`bool`, *optional*, defaults to `False`):
            Show a bar.

    Returns:
        [`ForgeryResult`]: evidence of the best key, with no looks charged, because a forger does not tell. `details` holds
        `best_log2_p`, the value to expect from chance alone (`expected_log2_p`, -log2 of the count) and `bound_log2_p`, which chance
        passes once in 2^20 searches (union bound).
    """
    if count < 1:
        raise ValueError(f"`count` is {count}: try at least one key")
    claim = key.claims()[require_method(key, method)]
    verifier = AutoVerifier.for_method(method)(replace(claim, subkeys=()))
    opened = Suspect.open(suspect, key.backbone)
    # Only the place of the first sub-key is used, with a secret of the forger's own.
    place = claim.subkeys[0].decoy()
    observation = verifier.observe(opened, place)
    evidence = verifier.score(observation, search_subkey(verifier, observation, place, count, progress)).decide()
    return ForgeryResult(
        name="key_search",
        attempt=f"tries {count:,} random keys and claims with the best one",
        evidence=evidence,
        details={
            "method": method,
            "seeds": count,
            "best_log2_p": round(evidence.log2_p, 2),
            "best_matches": evidence.matches,
            "trials": evidence.trials,
            "expected_log2_p": round(-math.log2(count), 2),
            "bound_log2_p": round(-math.log2(count) - BOUND_BITS, 2),
        },
    )


def search_subkey(verifier: Verifier, observation: Any, place: SubKey, count: int, progress: bool = False) -> SubKey:
    """The best of `count` random secrets at the place of one sub-key."""
    if isinstance(verifier, GreedyResidualsVerifier) and table_pays(verifier, place, count):
        return best_by_table(SignTable(verifier, observation, place), place, count, progress)
    with tqdm(range(count), desc="key search", disable=not progress, leave=False) as bar:
        return min((place.decoy() for _ in bar), key=lambda subkey: verifier.score(observation, subkey).log2_p)


def table_pays(verifier: GreedyResidualsVerifier, place: SubKey, count: int) -> bool:
    if verifier.config.preset == "paper":
        return False
    slot = slot_of(verifier, place)
    entries = int((slot.unit_count * slot.length).sum())
    return entries <= min(MAX_TABLE, TABLE_GAIN * count * verifier.config.bits)


def slot_of(verifier: GreedyResidualsVerifier, place: SubKey) -> Slot:
    subkeys = len(verifier.claim.assignment.subkeys)
    return make_slot(tuple(verifier.carriers), place.slot, verifier.config.group_size, subkeys)


class SignTable:
    """
    The sign of every group that a sub-key of one slot could draw from one suspect.

    A group is `group_size` steps along the walk `column = a k + b mod L` of one row ([`place_groups`]). With the inverse of `a`, its
    start is a position on the walk with shift 0, so a row has L x phi(L) different groups, however many keys are tried.

    Args:
        observation (`torch.Tensor`):
            The canonical rows of the slot laid end to end, as the verifier observes them.
    """

    def __init__(self, verifier: GreedyResidualsVerifier, observation: torch.Tensor, place: SubKey):
        self.bits, self.size = verifier.config.bits, verifier.config.group_size
        self.slot = slot_of(verifier, place)
        kept = verifier.config.kept_fraction
        lengths = sorted(set(self.slot.length.tolist()))
        self.inverse = np.concatenate([inverses(length) for length in lengths])
        first_inverse = dict(
            zip(lengths, np.cumsum([0] + [len(coprimes(length)) for length in lengths]), strict=False)
        )
        self.inverse_start = np.array([first_inverse[length] for length in self.slot.length.tolist()])
        tables, self.table_start, filled = [], np.empty_like(self.slot.start), 0
        for length in lengths:
            rows = np.flatnonzero(self.slot.length == length)
            table = walk_signs(observation[self.slot.start[rows, None] + np.arange(length)], self.size, kept)
            self.table_start[rows] = filled + np.arange(len(rows)) * table[0].size
            filled += table.size
            tables.append(table.reshape(-1))
        self.signs = np.concatenate(tables)

    def matches(self, subkeys: list[SubKey]) -> np.ndarray:
        """Matching bits of each of `subkeys`, as the verifier counts them."""
        slot, bits = self.slot, self.bits
        words = np.stack([subkey.stream("carrier").words(bits + 2 * len(slot.length)) for subkey in subkeys])
        message = np.stack([subkey.stream("bits").bits(bits) for subkey in subkeys])
        group = first_of_shuffles(words[:, :bits], int(slot.ends[-1]))
        row = np.searchsorted(slot.ends, group, side="right")
        # Only rows that hold a group of this key draw a step, then a shift (`place_groups`).
        used = np.zeros((len(subkeys), len(slot.length)), dtype=bool)
        np.put_along_axis(used, row, True, axis=1)
        rank, drawing = used.cumsum(axis=1) - 1, used.sum(axis=1)[:, None]
        draws = words[:, bits:]
        step = modulo(np.take_along_axis(draws, np.maximum(rank, 0), 1), slot.unit_count)
        shift = modulo(np.take_along_axis(draws, np.maximum(rank, 0) + drawing, 1), slot.length)
        shift = shift * self.inverse[self.inverse_start + step] % slot.length
        walk = self.table_start + step * slot.length
        within = (group - (slot.ends - slot.length // self.size)[row]) * self.size
        place = (within + np.take_along_axis(shift, row, 1)) % slot.length[row]
        answer = self.signs[np.take_along_axis(walk, row, 1) + place]
        # 0 marks a residual of exactly zero: a mismatch whatever the bit.
        return (answer == 2 * message - 1).sum(axis=1)


# The streams also replace words at the very top of their range, once in 2^50 draws. A search may ignore that: its best key is
# scored by the verifier in the end.
def modulo(words: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    return (words % bounds.astype(np.uint64)).astype(np.int64)


def first_of_shuffles(words: np.ndarray, size: int) -> np.ndarray:
    """[`~keys.Stream.distinct`] for many streams at once: `[keys, count]` words -> as many different integers below `size` per key."""
    keys, count = words.shape
    swaps = modulo(words, size - np.arange(count)) + np.arange(count)
    deck = np.tile(np.arange(size), (keys, 1)).T.copy()  # a step reads and writes one contiguous row
    every = np.arange(keys)
    for step in range(count):
        other = swaps[:, step]
        held = deck[other, every]
        deck[other, every] = deck[step]
        deck[step] = held
    return deck[:count].T


def inverses(length: int) -> np.ndarray:
    return np.array([pow(int(unit), -1, length) for unit in coprimes(length)])


def walk_signs(rows: torch.Tensor, size: int, kept_fraction: float) -> np.ndarray:
    """Signs (-1, 0, 1) of the residuals `[rows, steps, starts]` of all walks with shift 0 through `[rows, eligible]`."""
    count, length = rows.shape
    units = coprimes(length)
    table = np.empty((count, len(units), length), dtype=np.int8)
    for number, unit in enumerate(units):
        walk = torch.from_numpy(int(unit) * np.arange(length + size - 1) % length)
        windows = rows[:, walk].unfold(1, size, 1).reshape(-1, size)
        table[:, number] = greedy_mean(windows, kept_fraction).sign().reshape(count, length).numpy()
    return table


def best_by_table(table: SignTable, place: SubKey, count: int, progress: bool) -> SubKey:
    best, best_matches = place, -1
    with tqdm(total=count, desc="key search", disable=not progress, leave=False) as bar:
        for first in range(0, count, BATCH):
            tried = [replace(place, secret=entropy.draw(32)) for _ in range(min(BATCH, count - first))]
            matches = table.matches(tried)
            top = int(matches.argmax())
            if matches[top] > best_matches:
                best, best_matches = tried[top], int(matches[top])
            bar.update(len(tried))
    return best
