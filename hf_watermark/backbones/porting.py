"""
A key's carriers under the names that another library gives them.

A key knows the names of its carriers, not those of the whole model. Where one library numbers blocks by stages and the other one in a single sequence,
the depths of the stages are told from the carriers: the last block of a stage that is there carries, and a stage without carriers has one block.
"""

from collections.abc import Iterator, Mapping, Sequence

from .carriers import Carrier
from .families import Shape, is_vector
from .names import MOST_GROUPS, Place, Source, order_of, places_of, source_of
from .spelling import Group, Word, groups_of


def in_other_spellings(
    carriers: Sequence[Carrier], shapes: Mapping[str, Shape]
) -> Iterator[tuple[list[Source], list[str | None]]]:
    """
    Tensors that the table of ports pairs with a key's carriers, and the vectors behind them; whether their shapes fit is left to the caller.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`):
            Name and shape of every tensor of the suspect.
    """
    names = [carrier.name for carrier in carriers]
    own = [
        group
        for group in groups_of([*names, *filter(None, (item.scale for item in carriers))])
        if _names_all(group, names)
    ]
    if not own:
        return
    there: dict[str, list[Group]] = {}
    for group in groups_of(shapes):
        there.setdefault(group.architecture, []).append(group)
    for group in own[:MOST_GROUPS]:
        for other in there.get(group.architecture, ())[:MOST_GROUPS]:
            found = _matched(group, other)
            if all(name in found for name in names):
                yield [found[name] for name in names], [_scale(carrier, found, shapes) for carrier in carriers]


def _names_all(group: Group, names: Sequence[str]) -> bool:
    return {name for _, name in group.words.values()} >= set(names)


def _matched(own: Group, there: Group) -> dict[str, Source]:
    """Where the other spelling has each name of the key; the first way that is there holds."""
    known: dict[Place, tuple[int, str]] = {}
    order = order_of(there)
    for word, (rank, name) in there.words.items():
        for place in places_of(word, order):
            known[place] = min((rank, name), known.get(place, (rank, name)))
    numbers = _numbered(own.words)
    found: dict[str, tuple[int, Source]] = {}
    for word, (rank, name) in own.words.items():
        for place in places_of(word, numbers):
            source = source_of(place, known)
            if source is not None and rank < found.get(name, (rank + 1, source))[0]:
                found[name] = rank, source
    return {name: source for name, (_, source) in found.items()}


def _numbered(words: Mapping[Word, tuple[int, str]]) -> dict[tuple[int, ...], int]:
    """Number of each block in the order of the model, of which only these words are known."""
    blocks = {word.block for word in words if len(word.block) > 1}
    depths: dict[int, int] = {}
    for stage, *_, block in blocks:
        depths[stage] = max(depths.get(stage, 1), block + 1)
    before = {stage: sum(depths.get(earlier, 1) for earlier in range(stage)) for stage in depths}
    alone = {word.block: word.block[0] for word in words if len(word.block) == 1}
    return alone | {block: before[block[0]] + block[-1] for block in blocks}


def _scale(carrier: Carrier, found: Mapping[str, Source], shapes: Mapping[str, Shape]) -> str | None:
    source = found.get(carrier.scale or "")
    if source is None or len(source.names) > 1 or source.of > 1:
        return None
    return source.names[0] if is_vector(shapes[source.names[0]], carrier.rows) else None
