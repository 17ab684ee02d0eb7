"""
The layout of a model of any architecture, derived from its graph: which weights carry a mark, and which ones only align.

A stream (a set of channels) that several weights write to keeps its first writer as an anchor; later ones carry. Where there are too few of these,
every third input channel of the other weights carries and the rest of them aligns. So it is with all branches whose outputs are added: a copy for
inference has them in one kernel, in which nothing else would align. Nothing here knows an architecture by name.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
from torch import nn

from ..serialization import InvalidInput
from .adapted import live_weights
from .carriers import Carrier, carrier_at, describe
from .examples import images_taken
from .families import Found, Shape, is_vector
from .folding import evaluation_mode
from .ordering import core_shape
from .treatment import Observation, Treatment, observe


# Weights of later writers below which other weights have to help: two sub-keys of 512 bits in groups of 64, thrice over.
ENOUGH = 3 * 2 * 512 * 64
SHARE = 0.1
# A family that names fewer of a model's weights is not what the model is made of.
LEAST_SHARE = 0.02
# A weight with fewer inputs has no third that is worth marking.
FEWEST_INPUTS = 12
# Tracing takes seconds, and several callers ask for the layout of one model.
_DERIVED: "WeakKeyDictionary[nn.Module, tuple[dict[str, Shape], list[Carrier]]]" = WeakKeyDictionary()
SIDE = 64


def layout_of(model: nn.Module, layers: Iterable[str] | None = None) -> list[Carrier]:
    """
    The carriers of a live model: those of its family where names tell it, else those that its graph shows.

    Args:
        model (`nn.Module`):
            A classifier, a segmentation model, or a backbone, in any library's or one's own code. It is not changed.
        layers (`Iterable[str]`, *optional*):
            Roles (or tensor names) to use instead; see [`~backbones.describe`].

    Raises:
        [`~serialization.InvalidInput`]: when no weight of the model can carry a mark, or a layer does not exist.
    """
    shapes = {name: tuple(weight.shape) for name, weight in live_weights(model).items()}
    seen = observe(model)
    if layers is not None:
        return [_as_used(carrier, seen) for carrier in describe(shapes, layers)]
    try:
        named = describe(shapes)
    except InvalidInput:  # no family, or names that several parts share
        named = []
    if (
        named
        and all(_is_plain(carrier, seen) for carrier in named)
        and _size(named) >= LEAST_SHARE * sum(math.prod(shape) for shape in shapes.values())
    ):
        return named
    known, found = _DERIVED.get(model, ({}, []))
    if known != shapes:
        found = derived(model, shapes)
        _DERIVED[model] = shapes, found
    return found


def _is_plain(carrier: Carrier, seen: Observation) -> bool:
    """Whether the forward pass uses a carrier as its name says."""
    scale = () if carrier.scale is None else (carrier.scale,)
    return (
        seen.treatments.get(carrier.name, Treatment()) == Treatment() and seen.behind.get(carrier.name, scale) == scale
    )


def _as_used(carrier: Carrier, seen: Observation) -> Carrier:
    """A carrier that was chosen by hand."""
    how, behind = seen.treatments.get(carrier.name, Treatment()), seen.behind.get(carrier.name, ())
    if how is None:
        raise InvalidInput(
            f"`layers` names {carrier.name!r}, of which the forward pass uses something else than its rows (normalised, rounded, or added to another one), so "
            "a mark in it could be changed without changing an answer; name other layers"
        )
    return replace(carrier, centred=how.centred, scale=behind[0] if len(behind) == 1 else carrier.scale)


def derived(model: nn.Module, shapes: Mapping[str, Shape]) -> list[Carrier]:
    """The carriers that the graph of a model shows; those that its modules show where it cannot be traced."""
    seen = observe(model)
    try:
        writers = _traced(model, shapes)
    except Exception:  # control flow, operations on numbers, code of the user's: exporters fail in many ways
        writers = _declared(model, shapes)
    found = _chosen(writers, shapes, seen)
    if _size(found) < ENOUGH:  # much of the graph is of operations without a rule
        found = max(found, _chosen(_declared(model, shapes), shapes, seen), key=_size)
    if not found:
        raise InvalidInput(
            f"no weight of this {type(model).__name__} can carry a mark: it has no linear layer or convolution of at least {FEWEST_INPUTS} inputs "
            "behind the first one; name tensors yourself with `layers=[...]` in the config, or use a larger backbone"
        )
    alike = Counter(core_shape(shape) for shape in shapes.values())
    return [replace(carrier, alike=alike[core_shape(carrier.shape)]) for carrier in found]


def _chosen(writers: Sequence["Writer"], shapes: Mapping[str, Shape], seen: Observation) -> list[Carrier]:
    whole = sum(math.prod(shapes[writer.weight]) for writer in writers)
    able = [
        writer
        for writer in writers
        if (writer.later and not writer.branch) or (writer.inner and shapes[writer.weight][1] >= FEWEST_INPUTS)
    ]
    carriers = {writer.weight: _derived(writer, shapes, seen) for writer in able}
    found = [carrier for writer in able if writer.later and (carrier := carriers[writer.weight])]
    if _size(found) >= max(ENOUGH, SHARE * whole):
        return found
    return [
        replace(carrier, every_third_input=carrier.every_third_input or not writer.later)
        for writer in able
        if (carrier := carriers[writer.weight])
    ]


def _size(carriers: Iterable[Carrier]) -> int:
    return sum(carrier.rows * carrier.eligible for carrier in carriers)


@dataclass
class Writer:
    """
    A weight that writes channels from channels, in the order of the graph.

    Args:
        later (`bool`):
            Whether another weight has written to the same stream before, so that this one is not needed to recognise its channels.
        inner (`bool`):
            Whether it is neither the first weight nor one whose output is an answer.
        branch (`bool`):
            Whether another weight reads the same activation and its output is added to this one's.
    """

    weight: str
    later: bool = False
    inner: bool = True
    branch: bool = False


def _derived(writer: Writer, shapes: Mapping[str, Shape], seen: Observation) -> Carrier | None:
    """The carrier that a writer is; `None` where what is read could be turned without changing an answer."""
    how = seen.treatments.get(writer.weight, Treatment())
    # The signs of two vectors behind each other can be changed at once, and one number turns all rows.
    scales = seen.behind.get(writer.weight, ())
    if (
        how is None
        or len(scales) > 1
        or not all(is_vector(shapes.get(scale), shapes[writer.weight][0]) for scale in scales)
    ):
        return None
    carrier = carrier_at(writer.weight, Found(writer.weight, next(iter(scales), None)), shapes, False)
    return replace(carrier, centred=how.centred, every_third_input=writer.branch)


# --- From the graph


def _traced(model: nn.Module, shapes: Mapping[str, Shape]) -> list[Writer]:
    from .symmetry.graph import trace
    from .symmetry.structure import components

    with evaluation_mode(model):
        found = trace(model, images_taken(model, _side(model)), observe(model).treatments)
    channel = components(found.links, found.count)
    uses = [use for use in found.uses if use.tensor in shapes]
    reads = {use.tensor: use.ids for use in uses if use.flow == "in" and use.axis == 1}
    # A weight that is used twice, as in tied blocks, has the channels of its first use.
    writes = {use.tensor: use.ids for use in reversed(uses) if use.flow == "out" and use.axis == 0}
    matrices = list(dict.fromkeys(use.tensor for use in uses if use.tensor in reads and use.tensor in writes))
    if not matrices:
        raise InvalidInput("the graph shows no weight that reads channels and writes others")
    values = _labels(channel, [item.value for item in found.attentions if item.value is not None])
    read = _labels(channel, [use.ids for use in uses if use.flow == "in" and not _thin(shapes[use.tensor])])
    widest: dict[bytes, int] = {}
    for name in matrices:
        stream = channel[writes[name]].tobytes()
        widest[stream] = max(widest.get(stream, 0), found.positions.get(name, 0))
    added = components(found.sum_links, found.count)
    blocks = {name: (reads[name].tobytes(), added[writes[name]].tobytes()) for name in matrices}
    branches = Counter(blocks.values())
    written: dict[bytes, list[Writer]] = {}
    sources = _Sources()
    writers = []
    for number, name in enumerate(matrices):
        stream = channel[writes[name]].tobytes()
        # What writes at a few positions only gates the stream instead of adding to it; what reads an attention's values is mixed with them.
        places = found.positions.get(name, 0)
        adds = places >= widest[stream] / 8 and (places > 1 or widest[stream] == 1)
        apart = not bool(np.isin(channel[reads[name]], values).any())
        inner = bool(number and np.isin(channel[writes[name]], read).all()) and adds and apart
        before = written.setdefault(stream, [])
        reads_itself = sources.add(stream, channel[reads[name]], channel[writes[name]])
        writers.append(Writer(name, inner and bool(before), inner, branches[blocks[name]] > 1))
        before.append(writers[-1])
        if (
            len(before) == 2
            and not reads_itself
            and before[0].inner
            and writers[-1].later
            and math.prod(shapes[before[0].weight]) > math.prod(shapes[name])
        ):
            # The smaller one of the two that begin a stream suffices to recognise its channels, but not if it needs these itself.
            before[0].later, before[1].later = True, False
    return writers


class _Sources:
    """Which streams each stream is computed from."""

    def __init__(self) -> None:
        self.of: dict[bytes, set[bytes]] = {}
        self.with_channel: dict[int, set[bytes]] = {}

    def add(self, stream: bytes, read: np.ndarray, written: np.ndarray) -> bool:
        """Whether the channels that are read come from the stream that they are written to."""
        near = set().union(*(self.with_channel.get(channel, set()) for channel in np.unique(read).tolist()))
        behind = near.union(*(self.of[other] for other in near))
        self.of[stream] = self.of.get(stream, set()) | behind
        for channel in np.unique(written).tolist():
            self.with_channel.setdefault(channel, set()).add(stream)
        return stream in behind


def _side(model: nn.Module) -> int:
    """Height of the images that a timm module was made for, where it takes no other; a small one for the rest."""
    known = [getattr(module, "pretrained_cfg", None) or {} for module in model.modules()]
    sizes = [cfg["input_size"][-1] for cfg in known if cfg.get("fixed_input_size") and cfg.get("input_size")]
    return int(sizes[0]) if sizes else SIDE


def _labels(channel: np.ndarray, names: list[np.ndarray]) -> np.ndarray:
    flat = np.concatenate([np.zeros(0, dtype=np.int64), *(item.ravel() for item in names)])
    return np.unique(channel[flat[flat > 0]])


def _thin(shape: Shape) -> bool:
    return sum(size > 1 for size in shape) <= 1


# --- From the modules, where the graph cannot be had


def _declared(model: nn.Module, shapes: Mapping[str, Shape]) -> list[Writer]:
    known = observe(model).treatments
    names = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
        and getattr(module, "groups", 1) == 1
        # Of a model that cannot be run, those of torch's own layers are known to be used as they are.
        and (known or type(module).forward in (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward))
    ]
    names = [name for name in names if name in shapes and math.prod(shapes[name][1:]) > 1]
    if known and len(names) <= 2:  # layers of the user's own: any matrix that meets an activation
        names = [name for name, shape in shapes.items() if len(shape) in (2, 4) and min(shape[:2]) > 1]
    if known:
        names = [name for name in names if known.get(name) is not None]
    # The first one is the stem; the last one is the head, and there may be others of as many classes.
    return [
        Writer(name, inner=number > 0 and shapes[name][0] != shapes[names[-1]][0]) for number, name in enumerate(names)
    ]
