"""
A witness of each carrier: how its rows are spread in the model that the key was made for.

The key commits to it before its bits are drawn, and it is taken from the model before the mark, so where it says that the carriers lie depends on no bit. It
tells tensors of one shape apart whose names were exchanged. Scales of rows, signs of rows, and the order of what a row reads leave it as it is; the
order of the rows does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from .carriers import WITNESS_ROWS, Carrier, canonical_form
from .families import Found, Shape
from .ordering import core_shape, fits
from .reading import canonical_rows, read_weight


# All witnesses of a key together have at most so many numbers; with fewer than LEAST of a carrier's it says nothing.
MOST_NUMBERS, LEAST = 2**13, 32
# Carriers lie elsewhere where their mean resemblance is at least this there, and by so much larger than where the names say. A carrier of which even the
# named tensor resembles its witness so much is looked for no further.
SURE, BETTER, KNOWN = 0.5, 0.25, 0.4
# Units of one standard deviation in a byte.
STEP = 32.0


def witnessed(carriers: Sequence[Carrier], state: Mapping[str, torch.Tensor]) -> list[Carrier]:
    """
    The same carriers with their witnesses; as they are where the values are not all here (sharded models, the meta device).

    Args:
        state (`Mapping[str, torch.Tensor]`):
            The model before the mark.
    """
    if any(tensor.is_meta or type(tensor).__name__ == "DTensor" for tensor in state.values()):
        return list(carriers)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    rows = min(WITNESS_ROWS, MOST_NUMBERS // max(1, len(carriers)))
    with torch.no_grad():
        return [
            replace(carrier, witness=_written(spread(canonical_rows(carrier, state, shapes)[:rows])))
            for carrier in carriers
        ]


def spread(rows: torch.Tensor) -> torch.Tensor:
    """How far each canonical row is from having all of its size in one weight, less the mean: `[rows]`, of length 1."""
    values = rows.detach().abs().double().mean(dim=1)
    values = values - values.mean()
    return values / values.norm().clamp_min(1e-12)


def _written(values: torch.Tensor) -> str:
    if len(values) < LEAST or not values.any():
        return ""
    codes = (values * len(values) ** 0.5 * STEP).round().clamp(-127, 127) + 128
    return bytes(codes.int().tolist()).hex()


def resemblance(rows: torch.Tensor, witness: str) -> float:
    """Correlation of canonical rows with a witness."""
    known = torch.tensor(list(bytes.fromhex(witness)), dtype=torch.float64) - 128
    known = known - known.mean()
    if len(rows) < len(known):
        return 0.0
    return float(spread(rows[: len(known)]) @ known / known.norm().clamp_min(1e-12))


def by_witness(
    carriers: Sequence[Carrier],
    named: Sequence[Found],
    tensors: Mapping[str, torch.Tensor],
    shapes: Mapping[str, Shape],
) -> list[tuple[Found, ...]]:
    """
    Where the witnesses say that the carriers lie, if that is elsewhere than the names say: with the vectors behind them under the old names, and
    under the new ones. Empty where the names fit, or nothing does.

    Args:
        named (`Sequence[Found]`):
            Where the names say.
    """
    telling = [number for number, carrier in enumerate(carriers) if carrier.witness]
    own = {number: _likeness(carriers[number], named[number], tensors) for number in telling}
    if not telling or min(own.values()) >= KNOWN:
        return []
    from scipy.optimize import linear_sum_assignment  # a second to import, and most readings never need it

    best, gains = dict(enumerate(named)), []
    for kind in dict.fromkeys(core_shape(carriers[number].shape) for number in telling):
        members = [number for number in telling if core_shape(carriers[number].shape) == kind]
        pool = [name for name, shape in shapes.items() if fits(shape, carriers[members[0]])]
        scores = torch.tensor([[_likeness(carriers[n], Found(name, None), tensors) for name in pool] for n in members])
        for row, column in zip(*linear_sum_assignment(scores.numpy(), maximize=True), strict=True):
            number, found = members[row], Found(pool[column], None)
            if found.weight != named[number].weight:
                best[number] = found
                gains.append((float(scores[row, column]), own[number]))
    if not gains:
        return []
    there, before = (sum(values) / len(gains) for values in zip(*gains, strict=True))
    if there < SURE or there - before < BETTER:
        return []
    scale_of = {found.weight: found.scale for found in named}
    old = tuple(replace(best[n], scale=found.scale) for n, found in enumerate(named))
    new = tuple(replace(best[n], scale=scale_of.get(best[n].weight, found.scale)) for n, found in enumerate(named))
    return list(dict.fromkeys([old, new]))


def _likeness(carrier: Carrier, found: Found, tensors: Mapping[str, torch.Tensor]) -> float:
    weight = read_weight(tensors, found)[: len(carrier.witness) // 2]
    return resemblance(canonical_form(carrier, weight, None), carrier.witness)
