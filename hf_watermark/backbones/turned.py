"""Convolutions whose axes lie in an order that their own shapes do not tell: square ones that are stored input first, and kernels laid flat."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .carriers import Carrier
from .families import Found, Shape
from .stored.turning import CHANNELS_LAST


# A picture has no more channels.
COLOURS = 4
# `[in, out, height, width]` and `[in, height, width, out]` to `[out, in, height, width]`.
INPUT_FIRST = {None: (1, 0, 2, 3), CHANNELS_LAST: (3, 0, 1, 2)}


def turned_places(
    carriers: Sequence[Carrier], found: Sequence[Found], shapes: Mapping[str, Shape]
) -> list[tuple[Found, ...]]:
    """
    The same tensors with their axes in the other order that they may have, for a verifier to read and charge; none where there is no doubt.

    Args:
        found (`Sequence[Found]`): Where the carriers lie, with the order of axes in which they fit.
    """
    if any(is_flat(carrier, place, shapes) for carrier, place in zip(carriers, found, strict=True)):
        return [
            tuple(
                replace(place, view=_last(carrier.shape), axes=CHANNELS_LAST)
                if is_flat(carrier, place, shapes)
                else place
                for carrier, place in zip(carriers, found, strict=True)
            )
        ]
    turned = tuple(_input_first(carrier, place, shapes) for carrier, place in zip(carriers, found, strict=True))
    known = {place.axes for place in found if len(shapes.get(place.weight, ())) == 4}
    if turned == tuple(found) or len(known) != 1 or not _begins_with_input(next(iter(known)), shapes):
        return []
    return [turned]


def is_flat(carrier: Carrier, place: Found, shapes: Mapping[str, Shape]) -> bool:
    """Whether a convolution is stored as a matrix, in which the inputs or the places of the kernel may come first."""
    return (
        len(carrier.shape) == 4 and carrier.stride > 1 and place.is_stored and len(shapes.get(place.weight, ())) == 2
    )


def _last(shape: Shape) -> Shape:
    rows, inputs, height, width = shape
    return rows, height, width, inputs


def _input_first(carrier: Carrier, place: Found, shapes: Mapping[str, Shape]) -> Found:
    there = shapes.get(place.weight, ())
    if len(there) != 4 or len(carrier.shape) != 4 or place.more or place.of > 1 or place.axes not in INPUT_FIRST:
        return place
    axes = INPUT_FIRST[place.axes]
    return replace(place, axes=axes) if tuple(there[axis] for axis in axes) == tuple(carrier.shape) else place


def _begins_with_input(axes: tuple[int, ...] | None, shapes: Mapping[str, Shape]) -> bool:
    """Whether the convolutions, read in this order, give the colours of a picture and take none: then they are stored input first."""
    sizes = [
        (shape[0], shape[1 if axes is None else 3]) for shape in shapes.values() if len(shape) == 4 and min(shape) > 0
    ]
    return any(out <= COLOURS < taken for out, taken in sizes) and not any(taken <= COLOURS for _, taken in sizes)
