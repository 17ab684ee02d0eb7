"""
The mathematics of greedy residuals that trainer and verifier share: where the groups lie, and what a group says.

Residual of group i with G canonical weights v_1..v_G (Liu et al. 2021, §3; constants from the released code):

    phi_i = (1/G) * sum of the k = max(1, G - floor(G * (1 - kept) + 0.5)) weights of largest magnitude,   bit_i = [phi_i > 0]

and the penalty is lambda * sum_i max(0, mu - s_i phi_i) with s_i = +-1 for bit 1 / 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional

from ...backbones import Carrier, canonical_rows, located, own_rows, read_weight, slot_rows
from ...keys import SubKey
from ...serialization import InvalidInput
from .config import GreedyResidualsConfig


PAPER_GRID = (256, 253)
# Of an adapter: bits for each number that can be chosen freely in its factors. At rank 4 and 0.26 all but one in 4000 were held.
BITS_PER_NUMBER = 0.1


@dataclass(frozen=True)
class Groups:
    """
    Groups of one sub-key.

    Args:
        positions (`torch.Tensor`):
            `[bits, group size]`, flat positions in the slot's rows laid end to end, see [`~backbones.own_rows`].
        carrier, row (`torch.Tensor`):
            `[bits]`, number of the carrier and row in it.
        columns (`torch.Tensor`):
            `[bits, group size]`, eligible columns of that row.
        slot, subkeys (`int`):
            The slot and the number of slots.
    """

    positions: torch.Tensor
    carrier: torch.Tensor
    row: torch.Tensor
    columns: torch.Tensor
    slot: int
    subkeys: int


def groups_per_slot(carriers: Sequence[Carrier], group_size: int, subkeys: int) -> int:
    """Number of groups that the poorest of `subkeys` disjoint slots offers."""
    return min(
        sum(
            len(slot_rows(number, carrier.rows, slot, subkeys)) * (carrier.eligible // group_size)
            for number, carrier in enumerate(carriers)
        )
        for slot in range(subkeys)
    )


def refuse_small(config: GreedyResidualsConfig, carriers: list[Carrier], subkeys: int) -> None:
    """Raises [`~serialization.InvalidInput`] when the sub-keys do not fit into the carriers."""
    if config.preset == "paper":
        if carriers[0].rows * carriers[0].columns < PAPER_GRID[1]:
            raise InvalidInput(
                f"layer {carriers[0].role!r} has fewer than {PAPER_GRID[1]} weights, too few for the published grid"
            )
        return
    if groups_per_slot(carriers, config.group_size, subkeys) >= config.bits:
        return
    capacity = sum(carrier.rows * (carrier.eligible // config.group_size) for carrier in carriers)
    raise InvalidInput(
        f"{subkeys} sub-key(s) x {config.bits} bits x {config.group_size} weights do not fit: the {len(carriers)} weight tensors that can be marked "
        f"hold {capacity} disjoint groups in all; lower `bits`, `subkeys` or `group_size`, or use a larger backbone"
    )


def bearable_bits(carriers: list[Carrier], ranks: Mapping[str, int]) -> int:
    """
    Bits that low-rank changes bear beside what they were trained for: a share of their free numbers, r (rows + columns - r) per layer.

    Args:
        ranks (`Mapping[str, int]`):
            r of each carrier's change, by the name of the weight.
    """
    free = (ranks[item.name] * (item.rows + item.columns - ranks[item.name]) for item in carriers)
    return int(BITS_PER_NUMBER * sum(free))


def fitting_subkeys(carriers: Sequence[Carrier], config: GreedyResidualsConfig, most: int | None = None) -> int:
    """
    The default number of sub-keys: the most (up to 8) that leave 30 % of the groups unused; 1 if even that is too many.

    Args:
        most (`int`, *optional*):
            Bits that the carriers bear in all, where that is less than their groups.
    """
    for subkeys in range(8, 1, -1):
        if most is not None and subkeys * config.bits > most:
            continue
        if config.bits <= 0.7 * groups_per_slot(carriers, config.group_size, subkeys):
            return subkeys
    return 1


@dataclass(frozen=True)
class Slot:
    """
    The rows that one slot owns, in carrier order: what a key draws from. All arrays have one entry per row.

    Args:
        carrier, row (`np.ndarray`):
            Number of the carrier and row in it.
        start (`np.ndarray`):
            Position of the row's first eligible column when the slot's rows are laid end to end.
        length (`np.ndarray`):
            L, its number of eligible columns.
        ends (`np.ndarray`):
            Number of groups in this row and the rows before it.
        unit_start, unit_count (`np.ndarray`):
            Where the row's units, the integers in [1, L] coprime to L, lie in `units`.
    """

    carrier: np.ndarray
    row: np.ndarray
    start: np.ndarray
    length: np.ndarray
    ends: np.ndarray
    unit_start: np.ndarray
    unit_count: np.ndarray
    units: np.ndarray


@lru_cache(maxsize=64)
def make_slot(carriers: tuple[Carrier, ...], slot: int, group_size: int, subkeys: int) -> Slot:
    owned = [slot_rows(number, carrier.rows, slot, subkeys) for number, carrier in enumerate(carriers)]
    rows = [np.arange(own.start, own.stop) for own in owned]
    number = np.repeat(np.arange(len(carriers)), [len(own) for own in rows])
    length = np.array([carrier.eligible for carrier in carriers])[number]
    units = [coprimes(carrier.eligible) for carrier in carriers]
    unit_ends = np.cumsum([0] + [len(values) for values in units])
    return Slot(
        carrier=number,
        row=np.concatenate(rows),
        start=np.cumsum(length) - length,
        length=length,
        ends=np.cumsum(length // group_size),
        unit_start=unit_ends[number],
        unit_count=np.diff(unit_ends)[number],
        units=np.concatenate(units),
    )


@lru_cache(maxsize=256)
def coprimes(length: int) -> np.ndarray:
    numbers = np.arange(1, length + 1)
    return numbers[np.gcd(numbers, length) == 1]


def place_groups(subkey: SubKey, carriers: list[Carrier], bits: int, group_size: int, subkeys: int) -> Groups:
    """
    The key-drawn groups of one sub-key.

    Number all groups that the slot's rows ([`~backbones.slot_rows`]) hold (L // group size each) row after row, carrier after carrier. From
    stream `carrier`:

    1. bit i sits in group c_i, where c is a draw of `bits` different groups ([`~keys.Stream.distinct`]);
    2. each row that holds at least one of them, in row order, draws a, the index of one of the integers coprime to L in rising order;
    3. then each of these rows draws b below L (both [`~keys.Stream.below_each`]).

    Member k of group g of a row is its eligible column (a (g * group size + k) + b) mod L: an affine permutation of the columns, so
    groups never overlap. Only integers are drawn, and nothing for rows that carry no bit.
    """
    slot = make_slot(tuple(carriers), subkey.slot, group_size, subkeys)
    stream = subkey.stream("carrier")
    group = stream.distinct(int(slot.ends[-1]), bits)
    rows, which = np.unique(np.searchsorted(slot.ends, group, side="right"), return_inverse=True)
    factor = slot.units[slot.unit_start[rows] + stream.below_each(slot.unit_count[rows])][which, None]
    shift = stream.below_each(slot.length[rows])[which, None]
    row = rows[which]
    length = slot.length[row, None]
    within = group - (slot.ends[row] - slot.length[row] // group_size)
    steps = within[:, None] * group_size + np.arange(group_size)
    columns = (factor * steps + shift) % length
    return Groups(
        positions=torch.from_numpy(slot.start[row, None] + columns),
        carrier=torch.from_numpy(slot.carrier[row]),
        row=torch.from_numpy(slot.row[row]),
        columns=torch.from_numpy(columns),
        slot=subkey.slot,
        subkeys=subkeys,
    )


def read_residuals(
    rows: Mapping[str, torch.Tensor] | torch.Tensor, groups: Groups, kept_fraction: float
) -> torch.Tensor:
    """
    Residuals phi `[bits]` in bit order. Differentiable.

    Args:
        rows (`Mapping[str, torch.Tensor]` or `torch.Tensor`):
            Eligible canonical rows `[rows, eligible]` by role in carrier order, or what [`~backbones.own_rows`] made of them for this slot.
    """
    vector = rows if isinstance(rows, torch.Tensor) else own_rows(rows, groups.slot, groups.subkeys)
    positions = groups.positions.to(vector.device)
    values = vector.index_select(0, positions.flatten()).reshape(positions.shape)
    return greedy_mean(values, kept_fraction)


def greedy_mean(values: torch.Tensor, kept_fraction: float) -> torch.Tensor:
    """Per row of `[groups, size]`: the sum of the largest magnitudes, divided by the size. The selection counts as constant."""
    return values.gather(1, largest_magnitudes(values, kept_fraction)).sum(dim=1) / values.shape[1]


def kept_count(size: int, kept_fraction: float) -> int:
    """k, the number of weights that a residual sums."""
    return max(1, size - int(size * (1 - kept_fraction) + 0.5))


def largest_magnitudes(values: torch.Tensor, kept_fraction: float) -> torch.Tensor:
    """Columns `[groups, k]` of the k largest magnitudes of each row, in no particular order."""
    size = values.shape[1]
    kept = kept_count(size, kept_fraction)
    magnitudes = values.detach().abs()
    if magnitudes.device.type != "cpu":
        return magnitudes.topk(kept, dim=1, sorted=False).indices
    # On rows this short NumPy selects several times faster than torch, and this is most of what a step or a verification costs.
    return torch.from_numpy(np.argpartition(magnitudes.numpy(), size - kept, axis=1)[:, size - kept :])


def paper_residuals(weight: torch.Tensor, subkey: SubKey, kept_fraction: float) -> torch.Tensor:
    """
    The published extraction from one tensor: flatten, drop the remainder modulo 253, average-pool to the 256 x 253 grid, greedy
    mean per grid row. Unlike the release the key permutes the vector first, so that positions are secret too.
    """
    bits, width = PAPER_GRID
    flat = weight.float().flatten()
    length = flat.numel() // width * width
    order = torch.from_numpy(subkey.stream("carrier").permutations(1, flat.numel())[0][:length])
    grid = functional.adaptive_avg_pool1d(flat[order].reshape(1, 1, -1), bits * width).reshape(bits, width)
    return greedy_mean(grid, kept_fraction)


def residuals(
    config: GreedyResidualsConfig,
    carriers: list[Carrier],
    weights: Mapping[str, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    subkey: SubKey,
    subkeys: int,
) -> torch.Tensor:
    """Residuals `[bits]` of one sub-key straight from a state dict."""
    if config.preset == "paper":
        return paper_residuals(raw_weight(carriers[0], weights, shapes), subkey, config.kept_fraction)
    rows = {carrier.role: canonical_rows(carrier, weights, shapes) for carrier in carriers}
    groups = place_groups(subkey, carriers, config.bits, config.group_size, subkeys)
    return read_residuals(rows, groups, config.kept_fraction)


def raw_weight(
    carrier: Carrier, weights: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> torch.Tensor:
    return read_weight(weights, located(carrier, shapes))


def signs(subkey: SubKey, bits: int) -> torch.Tensor:
    """The key's message as +-1, `[bits]`."""
    return torch.from_numpy(subkey.stream("bits").bits(bits).astype(np.float32) * 2 - 1)


def hinge(phi: torch.Tensor, sign: torch.Tensor, margin: float) -> torch.Tensor:
    """Sum over bits of max(0, mu - s phi) (a sum, as in the released code)."""
    return functional.relu(margin - sign * phi).sum()
