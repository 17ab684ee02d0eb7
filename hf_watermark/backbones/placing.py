"""
Where the carriers of a key lie in a suspect, told from names and shapes alone.

The key's own shapes decide. A place is a full set of tensors that fit all carriers; names are tried first (under any prefix, in any library's
spelling of the key's family), shapes in order after that. Where several sets fit, all of them are given and the caller pays for each: which
one is read never depends on the key's bits.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, product

from ..serialization import InvalidInput, shown
from .carriers import STEM, Carrier, LayoutMismatch, locate
from .families import FAMILIES, Family, Found, Shape, is_vector, last_of_each_block, scale_behind, spelled_in
from .merging import in_merged_copies
from .ordering import MOST_PLACES, by_shapes, core_shape, fits
from .porting import in_other_spellings
from .spelling import Group, groups_of
from .stored.turning import CHANNELS_LAST


_ROLE = re.compile(r"(.+)\.(\d+)")
_BY_NAME = {family.name: family for family in FAMILIES}


@dataclass(frozen=True)
class Placing:
    """
    One full set of tensors that fit a key's carriers.

    Args:
        found (`tuple[Found, ...]`):
            Per carrier, in the key's order.
        by_names (`bool`):
            Whether names say so. Else only shapes and order do, and that the mark is not seen there means nothing.
        scaled (`bool`):
            Of a model with a merged adapter from which a base is taken away: whether its rows may have been scaled since.
        merged (`bool`):
            Whether branches beside the carriers are summed into the same tensors. Then too it means nothing that the mark is not seen.
    """

    found: tuple[Found, ...]
    by_names: bool = True
    scaled: bool = False
    merged: bool = False


def find_places(carriers: Sequence[Carrier], shapes: Mapping[str, Shape]) -> list[Placing]:
    """
    All sets of tensors in which a key's carriers may lie, the best justified one first.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`):
            Name and shape of every tensor, in the order of the file.

    Raises:
        [`LayoutMismatch`]: when there is none, or too many to tell.
    """
    places = _distinct(Placing(found) for found in _by_names(carriers, shapes))
    if not places:
        places = _distinct(Placing(found) for found in _by_ports(carriers, shapes))
    if not places:
        places = _distinct(Placing(found, merged=shared) for found, shared in in_merged_copies(carriers, shapes))
    if not places:
        places = _distinct(Placing(found, by_names=False) for found in by_shapes(carriers, shapes))
    if not places:
        raise _mismatch(carriers, shapes)
    if len(places) > MOST_PLACES:
        raise LayoutMismatch(
            f"more than {MOST_PLACES} sets of tensors have the key's names or shapes; leave only one model in the file"
        )
    return places


def located(carrier: Carrier, shapes: Mapping[str, Shape]) -> Found:
    """
    Where one carrier lies in a model of one's own, or in a suspect that holds one model.

    Raises:
        [`LayoutMismatch`]: when the suspect lacks the tensor or it has another shape.
    """
    found = next(_by_names([carrier], shapes), None) or next(_by_ports([carrier], shapes), None)
    if found is None:
        found = next((found for found, _ in in_merged_copies([carrier], shapes)), None)
    if found is None:
        raise _mismatch([carrier], shapes)
    return found[0]


def _axes(
    found: Sequence[str], carriers: Sequence[Carrier], shapes: Mapping[str, Shape]
) -> list[tuple[int, ...] | None] | None:
    """How the axes of each tensor have to be permuted; `None` when they do not fit. One file has one order."""
    if all(fits(shapes[name], carrier) for name, carrier in zip(found, carriers, strict=True)):
        return [None] * len(carriers)
    axes: list[tuple[int, ...] | None] = []
    for name, carrier in zip(found, carriers, strict=True):
        shape = shapes[name]
        turned = len(shape) == 4 and tuple(shape[axis] for axis in CHANNELS_LAST) == tuple(carrier.shape)
        if not turned and (len(shape) == 4 or not fits(shape, carrier)):
            return None
        axes.append(CHANNELS_LAST if turned else None)
    return axes


# --- By ports


def _by_ports(carriers: Sequence[Carrier], shapes: Mapping[str, Shape]) -> Iterator[tuple[Found, ...]]:
    """Every way in which the names of another library and its shapes fit."""
    for sources, scales in in_other_spellings(carriers, shapes):
        given = {f"{number}": source.shape(shapes) for number, source in enumerate(sources)}
        axes = _axes(list(given), carriers, given)
        if axes is None:
            continue
        for found in _with_scales(carriers, [source.names[0] for source in sources], scales, axes, shapes):
            yield tuple(
                replace(item, more=source.names[1:], part=source.part, of=source.of)
                for item, source in zip(found, sources, strict=True)
            )


# --- By names


def _by_names(carriers: Sequence[Carrier], shapes: Mapping[str, Shape]) -> Iterator[tuple[Found, ...]]:
    """Every way in which names and shapes fit, the shallowest prefixes first."""
    groups: dict[str, list[int]] = {}
    for number, carrier in enumerate(carriers):
        groups.setdefault(STEM if carrier.role == STEM else _family_of(carrier, shapes), []).append(number)
    options: list[list[dict[int, Found]]] = []
    for name, members in groups.items():
        own = [carriers[number] for number in members]
        if name == STEM:
            found = _stems(own, shapes)
        else:
            found = _of_family(_BY_NAME[name], own, shapes) if name else _named(own, shapes)
        options.append([dict(zip(members, item, strict=True)) for item in islice(found, MOST_PLACES + 1)])
    for chosen in islice(product(*options), 4 * MOST_PLACES):
        by_number = {number: found for part in chosen for number, found in part.items()}
        yield tuple(by_number[number] for number in range(len(carriers)))


def _family_of(carrier: Carrier, shapes: Mapping[str, Shape]) -> str:
    """Name of the family that a carrier is numbered in; empty where its role is a tensor's own name."""
    match = _ROLE.fullmatch(carrier.role)
    return match[1] if match and match[1] in _BY_NAME and carrier.role not in shapes else ""


def _of_family(
    family: Family, carriers: Sequence[Carrier], shapes: Mapping[str, Shape]
) -> Iterator[tuple[Found, ...]]:
    spelled = [
        (dialect, prefix, names)
        for dialect in family.dialects
        for prefix, names in spelled_in(dialect, shapes).items()
    ]
    for dialect, prefix, names in sorted(spelled, key=lambda item: item[1].count(".")):
        given = {name: shapes[prefix + name] for name in names.values()}
        for chosen in _chosen(family, carriers, names, given):
            axes = _axes(chosen, carriers, given)
            if axes is None:
                continue
            scales = [scale_behind(family, dialect, prefix, name, shapes) for name in chosen]
            yield from _with_scales(carriers, [prefix + name for name in chosen], scales, axes, shapes)


def _with_scales(
    carriers: Sequence[Carrier],
    weights: Sequence[str],
    scales: Sequence[str | None],
    axes: Sequence[tuple[int, ...] | None],
    shapes: Mapping[str, Shape],
) -> Iterator[tuple[Found, ...]]:
    # A vector that the key's model had not may be a part of this one, or no part of any.
    # Nor does the normalisation behind a convolution with a bias: folding it into the layer gives one.
    new = any(scale and carrier.name and not carrier.scale for scale, carrier in zip(scales, carriers, strict=True))
    folded = any(scale and _has_bias(name, shapes) for scale, name in zip(scales, weights, strict=True))
    without: list[str | None] = [None] * len(scales)
    for behind in [without, scales] if new else [scales, without] if folded else [scales]:
        yield tuple(map(Found, weights, behind, axes))


def _has_bias(name: str, shapes: Mapping[str, Shape]) -> bool:
    return len(shapes[name]) == 4 and f"{name.removesuffix('weight')}bias" in shapes


def _chosen(
    family: Family,
    carriers: Sequence[Carrier],
    names: Mapping[tuple[int, ...], str],
    shapes: Mapping[str, Shape],
) -> Iterator[list[str]]:
    """Names for the carriers in one dialect: those at the key's own places, else the key's ordinals, else any that fit in this order."""
    places = [_own_place(family, carrier) for carrier in carriers]
    if all(place in names for place in places):
        exact = [names[place] for place in places if place is not None]
        if _axes(exact, carriers, shapes) is not None:
            yield exact
            return
    blocks = last_of_each_block(family, names)
    ordinals = [int(carrier.role.rpartition(".")[2]) for carrier in carriers]
    if max(ordinals) < len(blocks):
        chosen = [blocks[ordinal] for ordinal in ordinals]
        if _axes(chosen, carriers, shapes) is not None:
            yield chosen
            return
    # What does not have a carrier's shape is none: further blocks, layers put behind the last one, renumbered ones.
    fitting = {
        place: name for place, name in names.items() if any(_axes([name], [c], shapes) is not None for c in carriers)
    }
    order = sorted(range(len(carriers)), key=lambda number: ordinals[number])
    sets = _in_order([carriers[number] for number in order], last_of_each_block(family, fitting), shapes)
    for found in islice(sets, MOST_PLACES + 1):
        by_number = dict(zip(order, found, strict=True))
        yield [by_number[number] for number in range(len(carriers))]


def _own_place(family: Family, carrier: Carrier) -> tuple[int, ...] | None:
    """The place of a carrier in the model that the key was made for."""
    parts = carrier.name.split(".")
    for start in range(len(parts)):
        for dialect in family.dialects:
            place = dialect.place(".".join(parts[start:]))
            if place is not None:
                return place
    return None


def _in_order(carriers: Sequence[Carrier], names: Sequence[str], shapes: Mapping[str, Shape]) -> Iterator[list[str]]:
    """Every choice of names whose shapes are those of the carriers, in this order; without dead ends, so each costs little."""

    @cache
    def fitting(number: int, name: str) -> bool:
        return _axes([name], [carriers[number]], shapes) is not None

    # The last place of each carrier behind which the rest still fits.
    latest, end = [0] * len(carriers), len(names)
    for number in reversed(range(len(carriers))):
        end = next((place for place in reversed(range(end)) if fitting(number, names[place])), -1)
        if end < 0:
            return
        latest[number] = end

    def choose(number: int, start: int) -> Iterator[list[str]]:
        if number == len(carriers):
            yield []
            return
        for place in range(start, latest[number] + 1):
            if fitting(number, names[place]):
                for rest in choose(number + 1, place + 1):
                    yield [names[place], *rest]

    yield from choose(0, 0)


def _stems(carriers: Sequence[Carrier], shapes: Mapping[str, Shape]) -> Iterator[tuple[Found, ...]]:
    [carrier] = carriers
    pattern = re.compile(rf"(?:.*\.)?(?:{'|'.join(family.stem for family in FAMILIES)})", re.DOTALL)
    names = [name for name in shapes if pattern.fullmatch(name) and len(shapes[name]) == 4]
    for name in sorted(names, key=lambda name: name.count(".")):
        axes = _axes([name], carriers, shapes)
        if axes is not None:
            yield (Found(name, None, axes[0]),)


def _named(carriers: Sequence[Carrier], shapes: Mapping[str, Shape]) -> Iterator[tuple[Found, ...]]:
    """Tensors by their own names, under any prefix more or less than in the key's model, one for all of them."""
    own = [carrier.role.split(".") for carrier in carriers]
    shared = 0
    while all(len(parts) > shared + 2 and parts[shared] == own[0][shared] for parts in own):
        shared += 1
    for dropped in range(shared + 1):
        wanted = [".".join(parts[dropped:]) for parts in own]
        prefixes = [name[: -len(wanted[0])] for name in shapes if name == wanted[0] or name.endswith(f".{wanted[0]}")]
        hit = False
        for prefix in sorted(prefixes, key=lambda prefix: prefix.count(".")):
            names = [prefix + text for text in wanted]
            axes = _axes(names, carriers, shapes) if all(name in shapes for name in names) else None
            if axes is not None:
                hit = True
                scales = [_scale_of(carrier, dropped, prefix, shapes) for carrier in carriers]
                yield from _with_scales(carriers, names, scales, axes, shapes)
        if hit:
            return


def _scale_of(carrier: Carrier, dropped: int, prefix: str, shapes: Mapping[str, Shape]) -> str | None:
    """The vector behind a carrier of no family, under the same prefix."""
    if carrier.scale is None:
        return None
    name = prefix + ".".join(carrier.scale.split(".")[dropped:])
    return name if is_vector(shapes.get(name), carrier.rows) else None


def unexplained(carriers: Sequence[Carrier], shapes: Mapping[str, Shape]) -> bool:
    """
    Whether a suspect holds, beside the tensors that names say are a family's, as many others of every carrier's shape: then whoever loads it may
    use those, under names of his own, and what the names say means nothing.
    """
    known = {
        prefix + name
        for family in FAMILIES
        for dialect in family.dialects
        for prefix, names in spelled_in(dialect, shapes).items()
        for name in names.values()
    }
    other = _other_spelling(carriers, shapes)
    if other is not None:
        known = {name for _, name in other.words.values()}
    if any(carrier.role in shapes or not _ROLE.fullmatch(carrier.role) for carrier in carriers):
        return False
    others = Counter(core_shape(shape) for name, shape in shapes.items() if name not in known)
    return all(
        others[kind] >= count for kind, count in Counter(core_shape(carrier.shape) for carrier in carriers).items()
    )


def _other_spelling(carriers: Sequence[Carrier], shapes: Mapping[str, Shape]) -> Group | None:
    """What a suspect's names say, where it is another library's names that say where the carriers lie."""
    if next(_by_names(carriers, shapes), None) is not None:
        return None
    return next(iter(groups_of(shapes)), None)


def has_further_blocks(carriers: Sequence[Carrier], shapes: Mapping[str, Shape], copies: int = 1) -> bool:
    """
    Whether a suspect has more blocks of these shapes than the key marks. One that does nothing, put in front, moves all others on, so that the
    blocks of the key's numbers need not be those that are meant. `copies`: as often the file holds the model.
    """
    marked = Counter(filter(None, (_family_of(carrier, shapes) for carrier in carriers)))
    kinds = {core_shape(carrier.shape) for carrier in carriers}
    # Queries, keys and values that the key's library stores in one tensor are no blocks.
    other = _other_spelling(carriers, shapes)
    parts = {name for word, (_, name) in other.words.items() if word.of > 1} if other is not None else set()
    there = Counter(core_shape(shape) for name, shape in shapes.items() if name not in parts)
    if any(carrier.alike and there[core_shape(carrier.shape)] > copies * carrier.alike for carrier in carriers):
        return True
    return any(
        sum(core_shape(shapes[prefix + name]) in kinds for name in last_of_each_block(_BY_NAME[family], names)) > count
        for family, count in marked.items()
        for dialect in _BY_NAME[family].dialects
        for prefix, names in spelled_in(dialect, shapes).items()
    )


def _distinct(places: Iterator[Placing]) -> list[Placing]:
    return list(islice(dict.fromkeys(places), MOST_PLACES + 1))


def _mismatch(carriers: Sequence[Carrier], shapes: Mapping[str, Shape]) -> LayoutMismatch:
    """What is wrong, with the first carrier that is there under its name and has another shape."""
    for carrier in carriers:
        try:
            name = locate(carrier.role, shapes).weight
        except InvalidInput:
            continue
        matrix = (shapes[name][0] if shapes[name] else 1), math.prod(shapes[name][1:])
        if matrix == (carrier.rows, carrier.columns):
            if fits(shapes[name], carrier):
                continue
            return LayoutMismatch(
                f"no tensors of the key's names and shapes: layer {carrier.role!r} ({shown(name)}) is stored as {list(shapes[name])}, the key was made for {list(carrier.shape)}: an "
                "order of axes that is not known; give the suspect as [out, in, height, width]"
            )
        return LayoutMismatch(
            f"no tensors of the key's names and shapes: layer {carrier.role!r} ({shown(name)}) has {matrix} weights, the key was made for "
            f"{(carrier.rows, carrier.columns)}; the suspect has another architecture or lost channels"
        )
    first = carriers[0]
    try:
        locate(first.role, shapes)
    except LayoutMismatch as error:
        return LayoutMismatch(f"no tensors of the key's names and shapes: {error}")
    except InvalidInput as error:
        return LayoutMismatch(str(error))
    return LayoutMismatch(
        f"no tensors of the key's names and shapes, first {first.role!r} {list(first.shape)}: the suspect has another architecture, or is "
        "stored in a way that is not known"
    )
