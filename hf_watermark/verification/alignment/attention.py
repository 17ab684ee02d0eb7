"""
Fits attention heads. Scores q k^T are the same for (A q, A^-T k), values and output projection for (C v, o C^-1), so heads are told apart
by what neither A nor C changes: W_q^T W_k and W_o W_v (PROTOCOL.md §5.2).
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment

from ...backbones.symmetry import Mixed, Moved
from .fitting import Fit, sylvester


@dataclass
class Heads:
    """
    Anchors of one attention in equal coordinates but for its own, `[heads, dim, K]` each: query, key and value weights with their biases as
    last columns, and the output projection's columns.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor | None


def fit_heads(suspect: Heads, reference: Heads) -> tuple[Fit, Fit, Moved]:
    """Fits of the queries' space, the values' space, and the order of the heads."""
    resemblance = _products(suspect.query, suspect.key, reference.query, reference.key)
    if suspect.output is not None and reference.output is not None:
        resemblance = resemblance + _products(suspect.value, suspect.output, reference.value, reference.output)
        resemblance = resemblance / 2
    rows, columns = (torch.from_numpy(part) for part in linear_sum_assignment(resemblance.numpy(), maximize=True))
    order = torch.full((len(reference.query),), -1)
    order[columns] = rows
    count = len(order)
    queries, values = [], []
    for head in range(count):
        match = int(order[head])
        # q_s = A q_r and A^T k_s = k_r, both linear in A.
        queries.append(sylvester(suspect.query[match], suspect.key[match], reference.query[head], reference.key[head]))
        if suspect.output is None or reference.output is None:
            values.append(torch.linalg.lstsq(reference.value[head].mT, suspect.value[match].mT).solution.mT.double())
        else:
            given = suspect.value[match], suspect.output[match], reference.value[head], reference.output[head]
            values.append(sylvester(*given))
    cosine = float(resemblance[order, torch.arange(count)].mean())
    recognised = cosine > 0.2
    moved = not torch.equal(order, torch.arange(count))
    fits = []
    for matrices in (queries, values):
        size = matrices[0].shape[0]
        left, right = (torch.zeros(count * size, count * size) for _ in range(2))
        mixed = False
        for head, matrix in enumerate(matrices):
            mine = slice(head * size, (head + 1) * size)
            theirs = slice(int(order[head]) * size, (int(order[head]) + 1) * size)
            left[mine, theirs] = torch.linalg.pinv(matrix).float()
            right[theirs, mine] = matrix
            mixed |= float((matrix - torch.eye(size)).norm()) > 0.05 * size**0.5
        done = ", ".join(["heads permuted"] * moved + ["heads mixed"] * mixed)
        fits.append(Fit(Mixed(left, right), torch.full((count * size,), recognised), cosine, done=done))
    return fits[0], fits[1], Moved.permutation(order)


def _products(
    first: torch.Tensor, second: torch.Tensor, own_first: torch.Tensor, own_second: torch.Tensor
) -> torch.Tensor:
    """Cosine `[heads, heads]` between a^T b of every suspect head and of every reference head, without forming the products."""

    def inner(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        left = torch.einsum("hdk,gek->hgde", a, c)
        right = torch.einsum("hdk,gek->hgde", b, d)
        return (left * right).sum(dim=(2, 3))

    size = inner(first, second, first, second).diagonal().clamp_min(1e-20).sqrt()
    own = inner(own_first, own_second, own_first, own_second).diagonal().clamp_min(1e-20).sqrt()
    return inner(first, second, own_first, own_second) / size[:, None] / own
