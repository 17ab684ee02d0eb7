"""
Finds a model's tensors in a suspect under other names: any prefix, and the spellings of other libraries that `ports.toml` knows.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from .spelling import Group, Word, groups_of


# Queries, keys and values; keys and values.
PARTS = (2, 3)
# Ways to read a list of names that are compared.
MOST_GROUPS = 6


class Renamed(Mapping[str, torch.Tensor]):
    """
    A suspect's tensors under other names, read when they are asked for.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): The suspect.
        sources (`Mapping[str, Source]`): Names in the suspect of each tensor here.
        read (`Callable`, *optional*): Reads one of them, as stored by default.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        sources: "Mapping[str, Source]",
        read: Callable[[Mapping[str, torch.Tensor], str], torch.Tensor] | None = None,
    ):
        self.tensors, self.sources, self.read = tensors, dict(sources), read or (lambda tensors, name: tensors[name])

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.of(self.sources[name])

    def of(self, source: "Source") -> torch.Tensor:
        """What lies there in the suspect."""
        parts = [self.read(self.tensors, part) for part in source.names]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole if source.of == 1 else whole.chunk(source.of)[source.part]

    def __contains__(self, name: object) -> bool:
        return name in self.sources

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


class Source(NamedTuple):
    """Tensors that are laid end to end, and which of how many equal parts of that is meant (all of it by default)."""

    names: tuple[str, ...]
    part: int = 0
    of: int = 1

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        first = tuple(shapes[self.names[0]])
        if not first:
            return first
        rows = sum(shapes[name][0] if shapes[name] else 1 for name in self.names)
        return (rows // self.of, *first[1:])


def in_form_of(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """
    The same numbers in the form in which another library stores them: a linear layer as a convolution of 1 x 1, a vector with sizes of 1 around it.
    What cannot be told from another tensor stays as it is.

    Args:
        shape (`Sequence[int]`):
            Of the tensor there, which may have other channels.
    """
    if tensor.ndim == len(shape) or not tensor.ndim:
        return tensor
    if tensor.numel() == math.prod(shape):
        return tensor.reshape(tuple(shape))
    sizes = [size for size in tensor.shape if size > 1]
    places = [place for place, size in enumerate(shape) if size > 1]
    if len(sizes) != len(places):
        return tensor
    known = dict(zip(places, sizes, strict=True))
    return tensor.reshape([known.get(place, 1) for place in range(len(shape))])


def best_spelling(names: Sequence[str], wanted: Sequence[str]) -> dict[str, Source]:
    """Of the prefixes under which the suspect has most of the wanted names, the shallowest; in the library's own spelling if possible."""
    exact = [under_prefix(names, wanted, prefix) for prefix in prefixes_of(names, wanted)[:1]]
    if exact and len(exact[0]) == len(wanted):
        return exact[0]
    return max([*exact, *(found for _, found in ports(names, wanted))], key=len, default={})


def prefixes_of(names: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Prefixes under which the suspect has wanted names, that with most of them first, then the shallowest."""
    tails = set(wanted)
    votes: dict[str, int] = {}
    for name in names:
        for start in _starts(name):
            if name[start:] in tails:
                votes[name[:start]] = votes.get(name[:start], 0) + 1
    return sorted(votes, key=lambda prefix: (-votes[prefix], prefix.count("."), prefix))


def under_prefix(names: Iterable[str], wanted: Iterable[str], prefix: str) -> dict[str, Source]:
    there = set(names)
    return {name: Source((prefix + name,)) for name in wanted if prefix + name in there}


def ports(names: Sequence[str], wanted: Sequence[str]) -> list[tuple[str, dict[str, Source]]]:
    """The wanted tensors in other spellings, by the prefix they stand under, that with most of them first."""
    there: dict[str, list[Group]] = {}
    for group in groups_of(names):
        there.setdefault(group.architecture, []).append(group)
    best: dict[str, dict[str, Source]] = {}
    for own in groups_of(wanted)[:MOST_GROUPS]:
        for other in there.get(own.architecture, ())[:MOST_GROUPS]:
            if len(best.get(other.prefix, ())) < len(wanted):
                found = pair(own, other)
                if len(found) > len(best.get(other.prefix, ())):
                    best[other.prefix] = found
    return sorted(best.items(), key=lambda item: (-len(item[1]), item[0].count("."), item[0]))


def pair(wanted: Group, there: Group) -> dict[str, Source]:
    """The tensors of one model's spelling in another's: by wanted name, where it lies."""
    order, other_order = order_of(wanted), order_of(there)
    known: dict[Place, tuple[int, str]] = {}
    for word, (rank, name) in there.words.items():
        for place in places_of(word, other_order):
            known[place] = min((rank, name), known.get(place, (rank, name)))
    sources: dict[str, tuple[int, Source]] = {}
    for word, (rank, name) in wanted.words.items():
        for place in places_of(word, order):
            source = source_of(place, known)
            if source is not None and rank <= sources.get(name, (rank, source))[0]:
                sources[name] = rank, source
    return {name: source for name, (_, source) in sources.items()}


class Place(NamedTuple):
    """A word, with its block by number or in order, so that two libraries mean the same."""

    word: Word
    order: int | None


def order_of(group: Group) -> dict[tuple[int, ...], int]:
    """Number of each block in the order of the model."""
    return {block: number for number, block in enumerate(sorted({word.block for word in group.words if word.block}))}


def places_of(word: Word, order: Mapping[tuple[int, ...], int]) -> list[Place]:
    if not word.block:
        return [Place(word, None)]
    # A sequence says by itself where it begins.
    number = word.block[0] if len(word.block) == 1 and not word.ordered else order[word.block]
    found = [Place(word._replace(block=()), number)]
    return found if word.ordered else [Place(word, None), *found]


def source_of(place: Place, known: Mapping[Place, tuple[int, str]]) -> Source | None:
    """The tensor itself, the parts that it is laid together from, or the whole of which it is a part."""
    if place in known:
        return Source((known[place][1],))
    if place.word.of > 1:
        whole = place._replace(word=place.word.whole)
        return Source((known[whole][1],), place.word.part, place.word.of) if whole in known else None
    for of in PARTS:
        parts = [place._replace(word=place.word._replace(part=part, of=of)) for part in range(of)]
        if all(part in known for part in parts):
            return Source(tuple(known[part][1] for part in parts))
    return None


def _starts(name: str) -> list[int]:
    """Where a name without a prefix may begin. Deeper than this no library nests."""
    dots = [place + 1 for place, letter in enumerate(name) if letter == "."]
    return [0, *dots][:24]
