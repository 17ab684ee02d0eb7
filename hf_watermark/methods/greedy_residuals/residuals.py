"""
The mathematics of greedy residuals that trainer and verifier share: where the groups lie, and what a group says.

Residual of group i with G canonical weights v_1..v_G (Liu et al. 2021, §3; constants from the released code):

    phi_i = (1/G) * sum of the k = G - floor(G * (1 - kept) + 0.5) weights of largest magnitude,   bit_i = [phi_i > 0]

and the penalty is lambda * sum_i max(0, mu - s_i phi_i) with s_i = +-1 for bit 1 / 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import numpy as np
import torch
from torch.nn import functional

from ...backbones import Carrier, canonical_rows
from ...keys import SubKey
from .config import GreedyResidualsConfig


PAPER_GRID = (256, 253)


@dataclass(frozen=True)
class Groups:
    """
    Groups of one sub-key, per carrier tensor.

    Args:
        indices (`dict[str, torch.Tensor]`):
            For each role the flat positions `[bits in this tensor, group size]` in its eligible canonical rows.
        order (`torch.Tensor`):
            Puts the residuals, read tensor by tensor, back into bit order: `[bits]`.
    """

    indices: dict[str, torch.Tensor]
    order: torch.Tensor


def groups_per_slot(carriers: list[Carrier], group_size: int, subkeys: int) -> int:
    """Number of groups that the poorest of `subkeys` disjoint slots offers. Slot j owns the rows j, j + subkeys, ..."""
    return min(
        sum(len(range(slot, carrier.rows, subkeys)) * (carrier.eligible // group_size) for carrier in carriers)
        for slot in range(subkeys)
    )


def fitting_subkeys(carriers: list[Carrier], config: GreedyResidualsConfig) -> int:
    """The default number of sub-keys: the most (up to 8) that leave 30 % of the groups unused; 1 if even that is too many."""
    for subkeys in range(8, 1, -1):
        if config.bits <= 0.7 * groups_per_slot(carriers, config.group_size, subkeys):
            return subkeys
    return 1


def place_groups(subkey: SubKey, carriers: list[Carrier], bits: int, group_size: int, subkeys: int) -> Groups:
    """
    The key-drawn groups of one sub-key.

    Every group lies within one row. Its columns follow an affine permutation k -> (a k + b) mod L of the row's L eligible columns,
    with a (coprime to L) and b drawn for each row; bit i sits in the i-th group of a drawn order of all groups.
    """
    stream = subkey.stream("carrier")
    rows, tensors, per_row = [], [], []
    for number, carrier in enumerate(carriers):
        own = np.arange(subkey.slot, carrier.rows, subkeys)
        rows.append(own)
        tensors.append(np.full(len(own), number))
        per_row.append(np.full(len(own), carrier.eligible // group_size))
    row, tensor, fits = np.concatenate(rows), np.concatenate(tensors), np.concatenate(per_row)
    ends = np.cumsum(fits)
    chosen = stream.permutations(1, int(ends[-1]))[0, :bits]
    owner_row = np.searchsorted(ends, chosen, side="right")
    within = chosen - (ends[owner_row] - fits[owner_row])
    factor, shift = np.empty(len(row), dtype=np.int64), np.empty(len(row), dtype=np.int64)
    for number, carrier in enumerate(carriers):
        mine = tensor == number
        units = coprimes(carrier.eligible)
        factor[mine] = units[stream.below(len(units), int(mine.sum()))]
        shift[mine] = stream.below(carrier.eligible, int(mine.sum()))
    length = np.array([carrier.eligible for carrier in carriers])[tensor[owner_row]]
    steps = within[:, None] * group_size + np.arange(group_size)
    columns = (factor[owner_row, None] * steps + shift[owner_row, None]) % length[:, None]
    flat = row[owner_row, None] * length[:, None] + columns
    indices, places = {}, []
    for number, carrier in enumerate(carriers):
        mine = np.flatnonzero(tensor[owner_row] == number)
        indices[carrier.role] = torch.from_numpy(flat[mine])
        places.append(mine)
    order = np.empty(bits, dtype=np.int64)
    order[np.concatenate(places)] = np.arange(bits)
    return Groups(indices, torch.from_numpy(order))


@lru_cache(maxsize=256)
def coprimes(length: int) -> np.ndarray:
    return np.array([unit for unit in range(1, length + 1) if gcd(unit, length) == 1])


def read_residuals(rows: Mapping[str, torch.Tensor], groups: Groups, kept_fraction: float) -> torch.Tensor:
    """
    Residuals phi `[bits]` in bit order. Differentiable.

    Args:
        rows (`Mapping[str, torch.Tensor]`):
            Eligible canonical rows `[rows, eligible]` by role.
    """
    parts = []
    for role, indices in groups.indices.items():
        values = rows[role].reshape(-1).index_select(0, indices.reshape(-1)).reshape(indices.shape)
        parts.append(greedy_mean(values, kept_fraction))
    return torch.cat(parts)[groups.order]


def greedy_mean(values: torch.Tensor, kept_fraction: float) -> torch.Tensor:
    """Per row of `[groups, size]`: the sum of the largest magnitudes, divided by the size. The selection counts as constant."""
    size = values.shape[1]
    kept = size - int(size * (1 - kept_fraction) + 0.5)
    largest = values.detach().abs().topk(kept, dim=1).indices
    return values.gather(1, largest).sum(dim=1) / size


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
    from ...backbones import locate

    return weights[locate(carrier.role, shapes).weight]


def signs(subkey: SubKey, bits: int) -> torch.Tensor:
    """The key's message as +-1, `[bits]`."""
    return torch.from_numpy(subkey.stream("bits").bits(bits).astype(np.float32) * 2 - 1)


def hinge(phi: torch.Tensor, sign: torch.Tensor, margin: float) -> torch.Tensor:
    """Sum over bits of max(0, mu - s phi) (a sum, as in the released code)."""
    return functional.relu(margin - sign * phi).sum()
