"""The order of a suspect's tensors as the last thing that says which ones are a key's carriers: where no name is known any more."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations, product

from .carriers import Carrier
from .families import Found, Shape, is_vector


# Sets that may be tried; more of them say that the suspect does not tell which one is meant.
MOST_PLACES = 32


def fits(shape: Shape, carrier: Carrier) -> bool:
    """Whether a tensor of this shape holds a carrier's rows and columns in the key's order."""
    return core_shape(shape) == core_shape(carrier.shape) or tuple(shape) == (carrier.rows, carrier.columns)


def core_shape(shape: Shape) -> Shape:
    # A linear layer and a 1 x 1 convolution are the same matrix.
    sizes = list(shape)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def by_shapes(carriers: Sequence[Carrier], shapes: Mapping[str, Shape]) -> Iterator[tuple[Found, ...]]:
    """
    Where no name is known: tensors of the carriers' shapes, in the order of the file and in that of their names. If few enough sets can be
    meant, all of them; else those that keep the order; else every k-th one, counted from the end, as the last layer of each block is.
    """
    kinds: dict[Shape, list[int]] = {}
    for number, carrier in enumerate(carriers):
        kinds.setdefault(core_shape(carrier.shape), []).append(number)
    orders = [list(shapes), sorted(shapes, key=_natural)]
    pools = [[[name for name in order if core_shape(shapes[name]) == kind] for kind in kinds] for order in orders]
    sizes = [(len(pool), len(members)) for pool, members in zip(pools[0], kinds.values(), strict=True)]
    if any(there < wanted for there, wanted in sizes):
        return
    ways = 1 if all(carrier.scale is None for carrier in carriers) else 2
    every = math.prod(math.perm(there, wanted) for there, wanted in sizes) * ways <= MOST_PLACES
    kept = math.prod(math.comb(there, wanted) for there, wanted in sizes) * ways * len(orders) <= MOST_PLACES
    for order, pool in zip(orders[:1] if every else orders, pools, strict=False):
        parts = []
        for names, (there, wanted) in zip(pool, sizes, strict=True):
            step = -(-there // wanted)
            strided = names[::-1][::step][:wanted][::-1]
            sets = permutations(names, wanted) if every else combinations(names, wanted) if kept else [tuple(strided)]
            parts.append([chosen for chosen in sets if len(chosen) == wanted])
        for chosen in product(*parts):
            weights = {
                number: name
                for members, names in zip(kinds.values(), chosen, strict=True)
                for number, name in zip(members, names, strict=True)
            }
            yield tuple(Found(weights[number], None) for number in range(len(carriers)))
            if ways == 2:
                yield tuple(Found(weights[n], _vector_behind(weights[n], order, shapes)) for n in range(len(carriers)))


def _vector_behind(name: str, order: Sequence[str], shapes: Mapping[str, Shape]) -> str | None:
    """The first vector of a weight's length that follows it before the next matrix: its normalisation's weight, if it has no bias."""
    for other in order[order.index(name) + 1 :]:
        if is_vector(shapes[other], shapes[name][0]):
            return other
        if len(shapes[other]) > 1:
            break
    return None


def _natural(name: str) -> list[tuple[int, str]]:
    """`t2` before `t10`, and names that are hexadecimal digits as they are."""
    return [
        (int(part), "") if part.isdecimal() and len(part) < 10 else (-1, part) for part in re.split(r"(\d+)", name)
    ]
