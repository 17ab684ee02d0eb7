"""
Blocks that a suspect has beyond those of the key's model. One that does nothing, put in anywhere, moves the later ones on by a number: then the key's
blocks keep their order, and each of the few ways in which they can lie is a place of its own, which a verifier reads and charges.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice, product

from ..serialization import shown
from .carriers import Carrier
from .families import Found, Shape
from .ordering import MOST_PLACES, fits


# Lists of more blocks are no network's.
MOST_BLOCKS = 256
Stack = tuple[str, tuple[int, ...]]  # what stands before the number, and the numbers of the blocks that carry


def moved_on(
    carriers: Sequence[Carrier], found: Sequence[Found], shapes: Mapping[str, Shape]
) -> list[tuple[Found, ...]]:
    """
    Every way in which the blocks of one place, in their order, may have been moved on by others between them; none where these are too many to try.

    Args:
        found (`Sequence[Found]`):
            Where the names say that the carriers lie.
    """
    stacks = _stacks(found, shapes)
    ways = {stack: list(islice(_moved(stack, carriers, found, shapes), MOST_PLACES + 1)) for stack in stacks}
    total = 1
    for options in ways.values():
        total *= max(1, len(options))
    if total > MOST_PLACES:
        return []
    moved = []
    for chosen in product(*ways.values()):
        numbers = {
            (prefix, own): new for (prefix, _), way in zip(ways, chosen, strict=True) for own, new in way.items()
        }
        moved.append(tuple(_renumbered(item, numbers) for item in found))
    return [place for place in moved if place != tuple(found)]


def _stacks(found: Sequence[Found], shapes: Mapping[str, Shape]) -> list[Stack]:
    """The lists of blocks that the carriers lie in, none inside of another: those first of which the suspect has more."""
    numbers: dict[str, set[int]] = {}
    for item in found:
        for match in re.finditer(r"(?<![^.])(\d+)(?=\.)", item.weight):
            numbers.setdefault(item.weight[: match.start()], set()).add(int(match[1]))
    there = {prefix: _numbers(prefix, shapes) for prefix in numbers}
    stacks: list[Stack] = []
    for prefix in sorted(numbers, key=lambda name: (there[name][-1] <= max(numbers[name]), -len(numbers[name]), name)):
        if not any(prefix.startswith(other) or other.startswith(prefix) for other, _ in stacks):
            stacks.append((prefix, tuple(sorted(numbers[prefix]))))
    return stacks


def _numbers(prefix: str, shapes: Mapping[str, Shape]) -> list[int]:
    """Of all blocks of a list in a suspect."""
    pattern = re.compile(rf"{re.escape(prefix)}(\d{{1,9}})\.", re.DOTALL)
    return sorted({int(match[1]) for match in map(pattern.match, shapes) if match})


def _moved(
    stack: Stack, carriers: Sequence[Carrier], found: Sequence[Found], shapes: Mapping[str, Shape]
) -> Iterator[dict[int, int]]:
    """The new number of each block, by its own: as large or larger, and in the same order."""
    prefix, own = stack
    most = _numbers(prefix, shapes)[-1] - own[-1]
    inside = {
        number: [
            (carrier, item)
            for carrier, item in zip(carriers, found, strict=True)
            if item.weight.startswith(f"{prefix}{number}.")
        ]
        for number in own
    }

    @cache
    def fitting(number: int, new: int) -> bool:
        moved = ((carrier, _renumbered(item, {(prefix, number): new})) for carrier, item in inside[number])
        return all(
            item.weight in shapes
            and fits(shapes[item.weight], carrier)
            and (item.scale is None or item.scale in shapes)
            for carrier, item in moved
        )

    # The largest offset of each block from which the later ones can still go on, so that there are no dead ends.
    latest = most
    reach: list[int] = []
    for number in reversed(own):
        latest = next((further for further in range(latest, -1, -1) if fitting(number, number + further)), -1)
        reach.insert(0, latest)

    def choose(place: int, offset: int) -> Iterator[dict[int, int]]:
        if place == len(own):
            yield {}
            return
        for further in range(offset, reach[place] + 1):
            if fitting(own[place], own[place] + further):
                for rest in choose(place + 1, further):
                    yield {own[place]: own[place] + further} | rest

    if len(own) <= MOST_BLOCKS:
        yield from choose(0, 0)


def _renumbered(item: Found, numbers: Mapping[tuple[str, int], int]) -> Found:
    for (prefix, own), new in numbers.items():
        old = f"{prefix}{own}."
        if item.weight.startswith(old):
            scale = item.scale
            if scale is not None and scale.startswith(old):
                scale = f"{prefix}{new}.{scale.removeprefix(old)}"
            return replace(item, weight=f"{prefix}{new}.{item.weight.removeprefix(old)}", scale=scale)
    return item


def surplus_in_words(found: Sequence[Found], shapes: Mapping[str, Shape]) -> str:
    """`13 blocks vit.layers.* where the key's model has 12`, of the first list that has more; empty where none has."""
    for prefix, own in _stacks(found, shapes):
        there = _numbers(prefix, shapes)
        if there[-1] > own[-1]:
            return f"{len(there)} blocks {shown(prefix)}* where the key's model has {own[-1] + 1}"
    return ""


def missing_in_words(carriers: Sequence[Carrier], shapes: Mapping[str, Shape]) -> str:
    """`11 blocks blocks.* where the key's model has 12`, of a suspect under the key's names with any prefix; empty where none is missing."""
    own = [Found(carrier.name, carrier.scale) for carrier in carriers if carrier.name]
    for prefix, numbers in _stacks(own, dict.fromkeys((item.weight for item in own), ())):
        pattern = re.compile(rf"(?:.*\.)?{re.escape(prefix)}(\d{{1,9}})\.", re.DOTALL)
        there = {int(match[1]) for match in map(pattern.match, shapes) if match}
        if 0 < len(there) <= numbers[-1]:
            return f"{len(there)} blocks {shown(prefix)}* where the key's model has {numbers[-1] + 1}"
    return ""
