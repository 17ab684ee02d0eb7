"""The layout of a model as a table that people read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from .adapted import live_weights
from .carriers import Carrier
from .families import Shape
from .layout import layout_of


# Roles of a weight.
WHOLE, THIRD, ANCHOR = "carrier", "every third input", "anchor"


@dataclass(frozen=True)
class LayoutRow:
    """
    One weight of a model.

    Args:
        name (`str`):
            The tensor.
        shape (`tuple[int, ...]`):
            Its full shape.
        role (`str`):
            `"carrier"`, `"every third input"` (these carry, the others align) or `"anchor"` (which only aligns).
        weights (`int`):
            How many of its weights may carry.
        scale (`str`, *optional*):
            The vector whose signs are read with its rows.
        centred (`bool`):
            Whether its rows are read without their mean.
    """

    name: str
    shape: Shape
    role: str
    weights: int = 0
    scale: str | None = None
    centred: bool = False

    def words(self) -> tuple[str, str, str]:
        """Name, shape and role."""
        role = f"{self.role}, centred" if self.centred else self.role
        return self.name, " x ".join(map(str, self.shape)), role


@dataclass(frozen=True)
class Layout:
    """
    Every matrix of a model, in the order of the file; `str` of it is a table.

    Args:
        carriers (`tuple[Carrier, ...]`):
            What a key of this model would name.
        rows (`tuple[LayoutRow, ...]`):
            Carriers and anchors.
    """

    carriers: tuple[Carrier, ...]
    rows: tuple[LayoutRow, ...]

    def __str__(self) -> str:
        heading = ("tensor", "shape", "role", "weights", "scale behind")
        return in_columns([heading, *((*row.words(), str(row.weights or ""), row.scale or "") for row in self.rows)])


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words, one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def layout_table(model: nn.Module) -> Layout:
    """
    Where marks in weights would lie in a model.

    Args:
        model (`nn.Module`):
            A vision model of any library, or of one's own. Its numbers are not read, so it may lie on the meta device.

    Raises:
        [`~serialization.InvalidInput`]: when no weight of the model can carry a mark.

    Example:

    ```python
    >>> import timm

    >>> print(layout_table(timm.create_model("resnet10t")))  # doctest: +ELLIPSIS
    tensor ...
    ```
    """
    carriers = {carrier.name: carrier for carrier in layout_of(model)}
    rows = []
    for name, weight in live_weights(model).items():
        shape = tuple(weight.shape)
        carrier = carriers.get(name)
        if carrier is not None:
            role = THIRD if carrier.every_third_input else WHOLE
            count = carrier.rows * carrier.eligible
            rows.append(LayoutRow(name, shape, role, count, carrier.scale, carrier.centred))
        elif sum(size > 1 for size in shape) > 1 and math.prod(shape[1:]) > 1:
            rows.append(LayoutRow(name, shape, ANCHOR))
    return Layout(tuple(carriers.values()), tuple(rows))
