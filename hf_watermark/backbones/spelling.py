"""
Names of one architecture in several libraries, as the table `ports.toml` pairs them, and how a list of names is read by it.

A line of the table gives timm's name of a tensor and another library's. In both, `{i}`, `{i+1}` and `{2i+1}` stand for a number, `{?}` for any number
(of several, the largest is meant), `*` at the end for what a module holds (`weight`, `bias`, `running_mean` ...). `{#}` and `{#.#}` number the same blocks
in one sequence and by stages; `{#+2}` says where the count begins, `{#0.#}` that only stage 0 is meant, which `{#0+1.#}` counts from 1; `{%.%}` that only
the order counts. Tensors that the other library stores apart are joined by ` + `. Several ways to spell one stand in a list: the first that is there holds.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple


TABLE = Path(__file__).with_name("ports.toml")
HERE, MERGED = "timm", "merged"
LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Deeper than this no library nests, and no library counts as far as this.
MOST_DOTS, MOST_DIGITS = 24, 5
_SLOT = re.compile(r"\{([^}]*)\}|(\d+)")
_LINEAR = re.compile(r"(\d*)([a-z#%])(?:\+(\d+))?")
_FIXED = re.compile(r"#(\d+)(?:\+(\d+))?")
_NUMBER = re.compile(r"\d+")


class Slot(NamedTuple):
    """
    What a number in a name means: `factor` x the variable + `first`.

    Args:
        variable (`str`): A letter, `#` or `%` for a block of the sequence, `?` for any number, empty for a constant.
        value (`int`): The constant.
        counts (`bool`): Whether it is one of the numbers of a block.
    """

    variable: str
    first: int = 0
    factor: int = 1
    value: int = 0
    counts: bool = False


class Spelling(NamedTuple):
    """
    One way to write the name of a tensor, or of the `part`-th of `of` tensors that it is made of.

    Args:
        library (`str`): Whose section of the table it is in.
        role (`str`): See [`Word`].
        numbers (`tuple[Slot, ...]`): The numbers in timm's name.
        slots (`tuple[Slot, ...]`): Those in this one.
        rank (`int`): Place among the ways to write this name.
        literal (`int`): Number of constants. Of several spellings that fit a name, those with most of them are meant.
    """

    library: str
    role: str
    numbers: tuple[Slot, ...]
    slots: tuple[Slot, ...]
    part: int
    of: int
    rank: int
    literal: int


class Word(NamedTuple):
    """
    What a name says.

    Args:
        role (`str`): timm's name without its numbers, but for those of a stage whose blocks have other parts.
        leaf (`str`): What the module holds there.
        numbers (`tuple[int, ...]`): The numbers in timm's name that do not count blocks.
        block (`tuple[int, ...]`): The numbers of the block, by stage or in one sequence, counted from 0; empty without.
        ordered (`bool`): Whether of those only the order counts.
        part, of (`int`): Which of how many tensors that are laid end to end.
    """

    role: str
    leaf: str
    numbers: tuple[int, ...]
    block: tuple[int, ...]
    ordered: bool
    part: int
    of: int

    @property
    def whole(self) -> "Word":
        """The tensor of which it is a part."""
        return self._replace(part=0, of=1)


@dataclass
class Group:
    """
    Names under one prefix that one library's spelling of one architecture explains.

    Args:
        words (`dict[Word, tuple[int, str]]`): Rank and name of what says it.
    """

    architecture: str
    library: str
    prefix: str
    words: dict[Word, tuple[int, str]] = field(default_factory=dict)


def groups_of(names: Iterable[str]) -> list[Group]:
    """Every way to read a list of names; those that explain most of them first."""
    found: dict[tuple[str, str, str], Group] = {}
    largest: dict[tuple[str, str, str, Word], tuple[int, ...]] = {}
    index = _index()
    for name in names:
        for prefix, skeleton, leaf, numbers in _tails(name):
            for (architecture, library), spellings in index.get(skeleton, {}).items():
                place = (architecture, library, _without_base(prefix, architecture, library))
                for word, rank, wild in _words(spellings, leaf, numbers):
                    if wild:
                        if wild < largest.get((*place, word), ()):
                            continue
                        largest[(*place, word)] = wild
                    words = found.setdefault(place, Group(*place)).words
                    if wild or word not in words or rank < words[word][0]:
                        words[word] = rank, name
    return sorted(found.values(), key=lambda group: (-len(group.words), group.prefix.count("."), group.prefix))


def _tails(name: str) -> Iterator[tuple[str, str, str, tuple[int, ...]]]:
    """Every end of a name that starts behind a dot, with what is before it: as skeletons, by leaf and whole."""
    pieces = name.split(".")
    found = [_NUMBER.findall(piece) for piece in pieces]
    flat = [text for texts in found for text in texts]
    if len(pieces) > MOST_DOTS or any(len(text) > MOST_DIGITS or text != str(int(text)) for text in flat):
        return  # `blocks.01` is no name of a library's
    leaf = next((leaf for leaf in LEAVES if name.endswith(leaf)), "")
    numbers = tuple(map(int, flat))
    skeleton, start, passed = _NUMBER.sub("#", name), 0, 0
    for piece, texts in zip(pieces, found, strict=True):
        yield name[:start], skeleton, "", numbers[passed:]
        if leaf:
            yield name[:start], f"{skeleton[: -len(leaf)]}*", leaf, numbers[passed:]
        start, passed = start + len(piece) + 1, passed + len(texts)
        skeleton = skeleton.partition(".")[2]


def _words(
    spellings: tuple[Spelling, ...], leaf: str, numbers: tuple[int, ...]
) -> Iterator[tuple[Word, int, tuple[int, ...]]]:
    """What a name says by the spellings of its skeleton, with the rank, and the numbers of which the largest are meant."""
    fitting = [
        (spelling, values) for spelling in spellings if (values := _values(spelling.slots, numbers)) is not None
    ]
    most: dict[str, int] = {}
    for spelling, _ in fitting:
        most[spelling.library] = max(most.get(spelling.library, 0), spelling.literal)
    for spelling, (block, variables, wild) in fitting:
        if spelling.literal < most[spelling.library]:
            continue
        own = tuple(
            slot.first + slot.factor * (variables[slot.variable] if slot.variable else slot.value)
            for slot in spelling.numbers
            if not slot.counts and slot.variable != "?"
        )
        ordered = any(slot.variable == "%" for slot in spelling.numbers)
        yield Word(spelling.role, leaf, own, block, ordered, spelling.part, spelling.of), spelling.rank, wild


def _values(
    slots: tuple[Slot, ...], numbers: tuple[int, ...]
) -> tuple[tuple[int, ...], dict[str, int], tuple[int, ...]] | None:
    """The block, the variables, and the numbers of `{?}`; `None` where the numbers do not fit."""
    block: list[int] = []
    variables: dict[str, int] = {}
    wild: list[int] = []
    for slot, number in zip(slots, numbers, strict=True):
        if slot.variable == "?":
            wild.append(number)
            continue
        value, rest = divmod(number - slot.first, slot.factor)
        if value < 0 or rest or (not slot.variable and value != slot.value):
            return None
        if slot.counts:
            block.append(value)
        elif slot.variable and variables.setdefault(slot.variable, value) != value:
            return None
    return tuple(block), variables, tuple(wild)


# --- The table


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def _architectures() -> list[tuple[str, dict[str, dict[str, Any]]]]:
    return [(name, libraries) for name, libraries in _table().items() if name != MERGED]


@cache
def _bases() -> dict[tuple[str, str], tuple[str, ...]]:
    return {
        (architecture, library): tuple(f"{base}." for base in lines.get("base", ()))
        for architecture, libraries in _architectures()
        for library, lines in libraries.items()
    }


def _without_base(prefix: str, architecture: str, library: str) -> str:
    """The prefix without the name under which the library keeps the backbone, beside which the head stands."""
    for base in _bases().get((architecture, library), ()):
        if prefix == base or prefix.endswith(f".{base}"):
            return prefix[: -len(base)]
    return prefix


@cache
def _index() -> dict[str, dict[tuple[str, str], tuple[Spelling, ...]]]:
    """By skeleton (a name with `#` for every number) and library, the spellings that have it."""
    index: dict[str, dict[tuple[str, str], dict[Spelling, None]]] = {}
    for architecture, libraries in _architectures():
        for library, lines in libraries.items():
            for role, others in lines.items():
                if role == "base":
                    continue
                ways = [others] if isinstance(others, str) else others
                _, numbers = read_template(role)
                name = _role(role, numbers)
                for where, rank, text in [(HERE, 0, role), *((library, rank, text) for rank, text in enumerate(ways))]:
                    parts = text.split(" + ")
                    for number, part in enumerate(parts):
                        skeleton, slots = read_template(part)
                        literal = sum(not slot.variable for slot in slots)
                        spelling = Spelling(library, name, numbers, slots, number, len(parts), rank, literal)
                        index.setdefault(skeleton, {}).setdefault((architecture, where), {})[spelling] = None
    return {skeleton: {place: tuple(found) for place, found in places.items()} for skeleton, places in index.items()}


def merged_names(name: str) -> Iterator[tuple[str, bool]]:
    """What a weight may be called where its module, or one around it, was merged into one layer; and whether other branches are in it."""
    names = _table()[MERGED]
    pieces = name.split(".")
    for end in range(len(pieces) - 2, 0, -1):
        module = ".".join(pieces[:end])
        yield from ((f"{module}.{branch}", True) for branch in names["branches"])
        yield from ((f"{module}.{layer}", False) for layer in names["layer"])


def read_template(text: str) -> tuple[str, tuple[Slot, ...]]:
    """
    The skeleton of a name in the table, and what its numbers mean.

    Raises:
        `ValueError`: for a placeholder that is none.
    """
    slots: list[Slot] = []

    def replace(match: re.Match[str]) -> str:
        if match[2] is not None:
            slots.append(Slot("", value=int(match[2])))
            return "#"
        pieces = match[1].split(".")
        slots.extend(_slot(piece, text) for piece in pieces)
        return ".".join("#" for _ in pieces)

    return _SLOT.sub(replace, text), tuple(slots)


def _role(text: str, numbers: tuple[Slot, ...]) -> str:
    """timm's name without its numbers, but for those of a stage whose blocks have other parts."""
    skeleton, _ = read_template(text)
    fixed = iter(f"{slot.value}" if slot.counts and not slot.variable else "#" for slot in numbers)
    return re.sub("#", lambda _: next(fixed), skeleton)


def _slot(piece: str, text: str) -> Slot:
    if piece == "?":
        return Slot("?")
    fixed = _FIXED.fullmatch(piece)
    if fixed:
        return Slot("", int(fixed[2] or 0), value=int(fixed[1]), counts=True)
    match = _LINEAR.fullmatch(piece)
    if match is None:
        raise ValueError(f"{{{piece}}} in {text!r} is no placeholder: write {{i}}, {{i+1}}, {{2i+1}}, {{?}}, {{#}}")
    return Slot(match[2], int(match[3] or 0), int(match[1] or 1), counts=match[2] in "#%")
