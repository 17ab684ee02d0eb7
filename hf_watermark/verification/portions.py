"""Which rows of a remote checkpoint are read together, and in which order."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..backbones import Carrier, slot_rows


# Of one portion.
LEAST_BYTES, MOST_BYTES = 2**20, 32 * 2**20
# Computing needs several copies of a block.
BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Block:
    """Rows `start` to `stop` of carrier number `carrier`."""

    carrier: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def owned_blocks(carriers: Sequence[Carrier], slots: Iterable[int], subkeys: int) -> list[Block]:
    """The rows that these slots own together, neighbours made one."""
    blocks: list[Block] = []
    for number, carrier in enumerate(carriers):
        owned = sorted((slot_rows(number, carrier.rows, slot, subkeys) for slot in slots), key=lambda rows: rows.start)
        for rows in filter(None, owned):
            start = rows.start
            if blocks and (blocks[-1].carrier, blocks[-1].stop) == (number, rows.start):
                start = blocks.pop().start
            blocks.append(Block(number, start, rows.stop))
    return blocks


def plan_readings(
    row_bytes: list[int], owned: list[Block], first_bytes: int, first_blocks: int, order: random.Random
) -> Iterator[list[Block]]:
    """
    All owned rows, in portions.

    The first portion takes equal shares of some blocks, each drawn with a chance that follows its size, from a place that is drawn too: who
    wants to spoil what is read first has to spoil most of the rest. The others take what is left, as much as the first one and then twice
    as much each time, up to [`MOST_BYTES`].

    Args:
        row_bytes (`list[int]`):
            Of each carrier.
        owned (`list[Block]`):
            All rows to read, no row twice.
        first_bytes, first_blocks (`int`):
            Size of the first portion; blocks that have at most [`LEAST_BYTES`] all together make one portion.
        order (`random.Random`):
            What draws.
    """

    def size(block: Block) -> int:
        return block.rows * row_bytes[block.carrier]

    if sum(map(size, owned)) <= LEAST_BYTES:
        first_blocks = len(owned)  # all at once: then nothing is stopped early
    # The least of exponential times with these rates (Efraimidis and Spirakis 2006); small blocks first, which leave their share to others.
    drawn = sorted(owned, key=lambda block: order.expovariate(max(1, size(block))))
    left, portion, limit = drawn[first_blocks:], [], first_bytes
    for place, block in enumerate(sorted(drawn[:first_blocks], key=size)):
        share = first_bytes // (min(first_blocks, len(owned)) - place)
        rows = min(block.rows, max(1, share // row_bytes[block.carrier]))
        start = order.randint(block.start, block.stop - rows)
        taken = Block(block.carrier, start, start + rows)
        portion += _cut(taken, row_bytes)
        left += [Block(block.carrier, block.start, start), Block(block.carrier, start + rows, block.stop)]
        first_bytes -= size(taken)
    yield portion
    left.sort(key=lambda block: (-size(block), block.carrier, block.start))
    portion, filled = [], 0
    for block in (cut for whole in left for cut in _cut(whole, row_bytes, limit)):
        if portion and filled + size(block) > limit:
            yield portion
            portion, filled, limit = [], 0, min(2 * limit, MOST_BYTES)
        portion, filled = [*portion, block], filled + size(block)
    if portion:
        yield portion


def _cut(block: Block, row_bytes: list[int], most: int = BLOCK_BYTES) -> list[Block]:
    """In blocks of at most `most` bytes; neighbours are read in one request all the same."""
    step = max(1, min(most, BLOCK_BYTES) // row_bytes[block.carrier])
    firsts = range(block.start, block.stop, step)
    return [Block(block.carrier, first, min(first + step, block.stop)) for first in firsts]
