"""
Tensors of a suspect that no layer has, and that may change or replace the weights that its names say: an order of inputs beside a weight, a part or a
difference of it, or the weights once more in another shape. Where they lie, that a mark is not seen under the names means nothing.
"""

import math
from collections.abc import Mapping, Sequence

from ..serialization import shown
from .carriers import Carrier
from .families import Found, Shape
from .formats import PLAIN, SCALES, ZEROS, beside


INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")
# All that a linear layer or a convolution has of its own.
OWN = ("weight", "bias")


def extras_in_words(
    carriers: Sequence[Carrier], found: Sequence[Found], shapes: Mapping[str, Shape], dtypes: Mapping[str, str]
) -> str:
    """
    `conv1.input_order beside conv1.weight`, of the first tensor that may be meant with a weight that was read; empty where there is none.

    Args:
        found (`Sequence[Found]`): Where the carriers were read.
        shapes, dtypes (`Mapping`): Of every tensor of the suspect.
    """
    # Codes are read with these.
    codes = [name for name, shape in shapes.items() if dtypes.get(name) not in PLAIN and len(shape) > 1]
    spent = {beside(name, spellings, shapes) for name in codes for spellings in (SCALES, ZEROS)}
    shapes = {name: shape for name, shape in shapes.items() if name not in spent}
    for carrier, place in zip(carriers, found, strict=True):
        inputs = carrier.columns // max(1, carrier.stride)
        for name in shapes:
            if name not in (place.weight, place.scale) and _belongs(name, shapes, place.weight, inputs):
                return f"{shown(name)} {list(shapes[name])} beside {shown(place.weight)}"
    return _again(shapes) or _orders(carriers, shapes, dtypes) or _flat(carriers, shapes)


def _belongs(name: str, shapes: Mapping[str, Shape], weight: str, inputs: int) -> bool:
    """Whether a tensor is a part of a weight, or lies in the same layer and is as wide as its inputs."""
    if name.startswith((f"{weight}.", f"{weight}_")):
        return True
    layer = weight.removesuffix("weight")
    if layer != weight and layer.endswith(".") and name.startswith(layer) and name.removeprefix(layer) not in OWN:
        return math.prod(shapes[name]) >= inputs
    return False


def _again(shapes: Mapping[str, Shape]) -> str:
    """A matrix of the suspect that it holds once more under a longer name, in another shape: then the model may lie there, turned or laid flat."""
    for name, shape in shapes.items():
        parts = name.split(".")
        for start in range(1, len(parts)):
            own = shapes.get(".".join(parts[start:]), ())
            if len(own) > 1 and tuple(own) != tuple(shape) and math.prod(own) == math.prod(shape):
                return f"{shown(name)} {list(shape)} beside {shown('.'.join(parts[start:]))} {list(own)}"
    return ""


def _orders(carriers: Sequence[Carrier], shapes: Mapping[str, Shape], dtypes: Mapping[str, str]) -> str:
    """Vectors of integers as long as the inputs of the carriers are many, for half of them or more."""
    wanted = [carrier.columns // max(1, carrier.stride) for carrier in carriers]
    there = [
        name
        for name, shape in shapes.items()
        if dtypes.get(name) in INTEGERS
        and math.prod(shape) in wanted
        and max(shape, default=0) == math.prod(shape) > 1
    ]
    return f"{shown(there[0])} {list(shapes[there[0]])} and its like" if 2 * len(there) >= len(carriers) else ""


def _flat(carriers: Sequence[Carrier], shapes: Mapping[str, Shape]) -> str:
    """Vectors that hold as many numbers as the carriers, and are too long for the rows or columns of any matrix."""
    least = min(carrier.rows * carrier.columns for carrier in carriers)
    sides = {
        size for shape in shapes.values() if len(shape) > 1 for size in (shape[0], math.prod(shape[1:]), shape[-1])
    }
    long = [name for name, shape in shapes.items() if max(shape, default=0) == math.prod(shape) >= least]
    long = [name for name in long if math.prod(shapes[name]) not in sides]
    held = sum(math.prod(shapes[name]) for name in long)
    if long and held >= sum(carrier.rows * carrier.columns for carrier in carriers):
        return f"{shown(long[0])} {list(shapes[long[0]])}"
    return ""
