"""
Copies for inference: the branches of a block summed into one convolution, or a normalisation folded into the layer before it, under another name.

A sum of branches is, off its middle, the kernel of the largest one with its rows scaled. So a carrier's place in the sum is read as if it were the
carrier: where the other branches are small its bits are there, and where they are not it says as much as a coin. What has no place there is lost.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from torch import nn

from .carriers import Carrier
from .families import Found, Shape, is_vector
from .folding import evaluation_mode
from .names import best_spelling, prefixes_of
from .ordering import core_shape, fits
from .spelling import merged_names


# Prefixes that are tried.
MOST_PREFIXES = 4
# How the libraries' modules merge themselves.
IN_PLACE = ("reparameterize", "switch_to_deploy")


def in_merged_copies(
    carriers: Sequence[Carrier], shapes: Mapping[str, Shape]
) -> Iterator[tuple[tuple[Found, ...], bool]]:
    """
    Where a key's carriers lie in a copy for inference, and whether any of them shares its tensor with other branches.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`):
            Name and shape of every tensor of the suspect.
    """
    candidates = [list(merged_names(carrier.name)) for carrier in carriers]
    wanted = {carrier.name for carrier in carriers} | {name for names in candidates for name, _ in names}
    for prefix in islice(prefixes_of(shapes, wanted), MOST_PREFIXES):
        found: list[tuple[Found, bool]] = []
        for carrier, names in zip(carriers, candidates, strict=True):
            item = _found(carrier, names, prefix, shapes)
            if item is None:
                break
            found.append(item)
        middles = {item.weight for item, _ in found if item.middle}
        items = tuple(replace(item, hollow=item.weight in middles and not item.middle) for item, _ in found)
        there = [item.weight for item in items if not item.lost]
        if len(items) == len(carriers) and there:
            yield items, len(set(there)) < len(items) or any(shared for _, shared in found)


def _found(
    carrier: Carrier, candidates: Sequence[tuple[str, bool]], prefix: str, shapes: Mapping[str, Shape]
) -> tuple[Found, bool] | None:
    """The carrier itself, or the kernel that it was merged into; lost where that has no place for it, `None` where there is none."""
    own = prefix + carrier.name
    if own in shapes and fits(shapes[own], carrier):
        scale = prefix + (carrier.scale or "")
        return Found(own, scale if is_vector(shapes.get(scale), carrier.rows) else None), False
    there = [(prefix + name, shared) for name, shared in candidates if prefix + name in shapes]
    for name, shared in there:
        if fits(shapes[name], carrier):
            return Found(name, None), shared
    for name, _ in there:
        if _has_middle(shapes[name], carrier):
            return Found(name, None, middle=True), True
    return (Found(there[0][0], None, lost=True), True) if there else None


def _has_middle(shape: Shape, carrier: Carrier) -> bool:
    """Whether a kernel has a middle that a carrier of 1 x 1 was added to."""
    return len(shape) == 4 and shape[2] % 2 == shape[3] % 2 == 1 and core_shape(shape[:2]) == core_shape(carrier.shape)


def alike_merged(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """The model, or its copy for inference where a suspect has more of that one's names."""
    own = list(model.state_dict())
    found = len(best_spelling(names, own))
    if found == len(own) or not any(_can_merge(module) for module in model.modules()):
        return model
    merged = merged_copy(model)
    theirs = list(merged.state_dict())
    return merged if len(best_spelling(names, theirs)) * len(own) > found * len(theirs) else model


def _can_merge(module: nn.Module) -> bool:
    return any(callable(getattr(module, way, None)) for way in ("fuse", *IN_PLACE))


def merged_copy(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode in which every module that knows how to has merged its branches."""
    with evaluation_mode(model):
        merged = copy.deepcopy(model)
    _merge_children(merged)
    return merged


def _merge_children(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        fuse = getattr(child, "fuse", None)
        if callable(fuse):
            fused = fuse()
            child = fused if isinstance(fused, nn.Module) else child
            setattr(module, name, child)
        else:
            merge = next((getattr(child, way) for way in IN_PLACE if callable(getattr(child, way, None))), None)
            if merge is not None:
                merge()
        _merge_children(child)
