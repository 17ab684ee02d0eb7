"""
The symmetry group of a network: which sets of channels may be permuted, scaled, rotated or mixed without changing an answer.

A *space* is a set of channels that move together. Its kind says what may be done to it (PROTOCOL.md §5.1):

| kind | group | found where |
|---|---|---|
| `fixed` | nothing | images, logits |
| `permutation` | permutations, times a scale per channel of each of its classes | behind ReLU, GELU, depthwise convolutions ... |
| `orthogonal` | rotations that keep the constant vector | residual stream of pre-norm transformers |
| `linear` | every invertible matrix | linear bottlenecks |
| `heads` | permutation of the heads, an invertible matrix in each | queries with keys, values |

A *class* is what one scale per channel belongs to: `none` (1), `positive`, or `any` (signs too).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn

from .. import FoldedNet, images_taken
from ..treatment import Treatment, observe
from .graph import trace
from .tracing import Attention, Norm, Trace, Use


SCALES = ("none", "positive", "any")
# An exporter takes seconds, and one reference is aligned to many times.
_TRACED: "WeakKeyDictionary[nn.Module, tuple[list[Any], Trace]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Segment:
    """
    A part of an axis: one whole space, every channel `repeat` times in a row, scaled by class `scale`. `dual`: keys, which take the inverse
    transpose of what is done to the queries of the same space.
    """

    space: int
    scale: int
    size: int
    repeat: int = 1
    dual: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor in channels; see [`~tracing.Use`]."""

    axis: int
    flow: str
    segments: tuple[Segment, ...]


@dataclass
class Space:
    """
    Args:
        kind (`str`):
            See above.
        size (`int`):
            Number of channels.
        heads (`tuple[int, int]`, *optional*):
            Number of heads and channels per head.
        partner (`int`, *optional*):
            Of queries with keys, the space of their values, and the other way round; of a space of one channel per head, the values.
        normed (`bool`):
            Whether a normalisation goes over all its channels, so that none can be added or left out.
    """

    kind: str
    size: int
    heads: tuple[int, int] | None = None
    partner: int | None = None
    normed: bool = False


@dataclass
class Symmetry:
    """
    Attributes:
        net ([`~backbones.FoldedNet`]): The model in folded coordinates.
        spaces: In the order in which the network writes them.
        scales: Kind of every class.
        axes: Channels of every tensor in folded coordinates, by its name.
        norms, scalers: Layer normalisations and LayerScales that are folded away, see [`~backbones.symmetry.folding`].
        norm_axes: Channels of the slopes of these normalisations where they are not folded away.
        treated: Weights whose rows the network normalises before it uses them, and how.
    """

    net: FoldedNet
    spaces: list[Space]
    scales: list[str]
    axes: dict[str, list[Axis]]
    shapes: dict[str, tuple[int, ...]]
    norms: dict[str, Norm] = field(default_factory=dict)
    norm_axes: dict[str, list[Axis]] = field(default_factory=dict)
    scalers: dict[str, str] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)
    treated: dict[str, Treatment] = field(default_factory=dict)

    def touching(self, space: int) -> Iterator[tuple[str, Axis]]:
        """Tensors with an axis in this space."""
        for name, axes in self.axes.items():
            for axis in axes:
                if any(segment.space == space for segment in axis.segments):
                    yield name, axis


def symmetry_of(model: nn.Module, images: torch.Tensor | None = None) -> Symmetry:
    """
    Derives the symmetry of a model from its traced graph.

    Args:
        model (`nn.Module`):
            A vision model. It is not changed.
        images (`torch.Tensor`, *optional*):
            One image `[1, channels, height, width]` to trace with; a black one by default.

    Raises:
        [`~tracing.Untraceable`]: when `torch.export` cannot trace it.
    """
    images = images_taken(model) if images is None else images[:1]
    net = FoldedNet(model, images)
    # What the graph of a model depends on, short of its code.
    parts = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    graph = [*parts, *((name, type(part)) for name, part in model.named_modules()), tuple(images.shape)]
    known, found = _TRACED.get(model, ([], None))
    if found is None or known != graph:
        found = trace(net.holding(net.coordinates(model)), images, observe(model).treatments)
        _TRACED[model] = graph, found
    return _Builder(found).build(net)


class _Builder:
    """Turns the names of a trace into spaces, positions and classes."""

    def __init__(self, found: Trace):
        self.trace = found
        self.channel = components(found.links, found.count)
        self.scale = components(found.scale_links, found.count)
        self._mark_constants()
        self.groups = list(self._groups())
        keys = [attention.key.ravel() for attention in self.attentions if attention.key is not None]
        self.keys = np.concatenate([np.zeros(0, dtype=np.int64), *keys])
        self.space_of = np.full(self.channel.max() + 1, -1)
        self.place_of = np.zeros(self.channel.max() + 1, dtype=np.int64)

    def build(self, net: FoldedNet) -> Symmetry:
        spaces = self._spaces()
        scales: dict[tuple[int, ...], int] = {}
        uses = [*self.trace.uses, *self._parameter_uses()]
        axes: dict[str, list[Axis]] = {}
        for use in sorted(uses, key=lambda use: (use.tensor, use.axis, use.flow)):
            segments = self._segments(use.ids, spaces, scales)
            if segments is None:
                for number in {int(n) for n in self.space_of[self.channel[use.ids[use.ids > 0]]]}:
                    spaces[number].kind = "fixed"
                continue
            if segments and Axis(use.axis, use.flow, segments) not in axes.setdefault(use.tensor, []):
                axes[use.tensor].append(Axis(use.axis, use.flow, segments))
        slopes = {name: self._segments(norm.ids, spaces, scales) for name, norm in self.trace.norms.items()}
        norm_axes = {name: [Axis(0, "out", segments)] for name, segments in slopes.items() if segments}
        self._matrix_kinds(spaces)
        kinds = self._scale_kinds(list(scales), spaces)
        held = self.trace
        shapes = {name: tuple(tensor.shape) for name, tensor in net.template.named_parameters()}
        return Symmetry(
            net, spaces, kinds, axes, shapes, held.norms, norm_axes, held.scalers, held.biases, held.treated
        )

    def _mark_constants(self) -> None:
        for ids, constant in self.trace.constants:
            channels = torch.from_numpy(self.channel)[ids]
            for axis in range(ids.ndim):
                if all(
                    not torch.equal(item, item.narrow(axis, 0, 1).expand_as(item)) for item in (channels, constant)
                ):
                    self.trace.mark("fixed", ids)

    # Spaces

    def _groups(self) -> Iterator[tuple[np.ndarray, Attention | None, str]]:
        """Channels that move together: those of one attention, else those that one layer writes."""
        self.attentions = _merged(self.trace.attentions, self.channel)
        taken: list[np.ndarray] = []
        for attention in self.attentions:
            for part in ("query", "value"):
                names = getattr(attention, part)
                if names is not None:
                    taken.append(self.channel[names.ravel()])
                    yield self.channel[names.ravel()], attention, part
        used = np.unique(np.concatenate(taken)) if taken else np.zeros(0, dtype=np.int64)
        for block in self.trace.blocks:
            channels = self.channel[block]
            rest = channels[~np.isin(channels, used)]
            if len(rest):
                yield rest, None, ""

    def _spaces(self) -> list[Space]:
        # Groups that share a channel are one space.
        ties = [np.stack([channels[:-1], channels[1:]]) for channels, _, _ in self.groups if len(channels) > 1]
        whole = components(ties, len(self.channel))
        members: dict[int, dict[int, None]] = {}
        attention_of: dict[int, tuple[Attention, str]] = {}
        for channels, attention, part in self.groups:
            label = int(whole[channels[0]])
            members.setdefault(label, {}).update(dict.fromkeys(channels.tolist()))
            if attention is not None:
                attention_of[label] = attention, part
        # A channel is as old as its first name.
        first_name = np.full(self.channel.max() + 1, len(self.channel))
        np.minimum.at(first_name, self.channel, np.arange(len(self.channel)))
        spaces: list[Space] = []
        roles = self._roles()
        parts: list[tuple[np.ndarray, int]] = []
        for label, channels_of in members.items():
            known = np.array(list(channels_of))
            kinds = roles[known] if label not in attention_of else np.zeros(len(known))
            parts += [(known[kinds == kind], label) for kind in dict.fromkeys(kinds.tolist())]
        for known, label in sorted(parts, key=lambda part: first_name[part[0]].min()):
            self.space_of[known], self.place_of[known] = len(spaces), np.arange(len(known))
            spaces.append(Space("permutation", len(known)))
            if label in attention_of:
                attention, part = attention_of[label]
                spaces[-1].heads = getattr(attention, part).shape
                spaces[-1].kind = "heads"
        self._pair(spaces)
        for names in self.trace.marks["fixed"]:
            for number in np.unique(self.space_of[self.channel[names]]):
                if number >= 0:
                    spaces[number].kind = "fixed"
        return spaces

    def _roles(self) -> np.ndarray:
        """
        A number per channel, equal where all the same tensors and kinds of operations touch two channels. Others never change places, though one
        layer may write both.
        """
        touched = [use.ids for use in self.trace.uses]
        touched += [names for marks in self.trace.marks.values() for names in marks]
        # Sums of random numbers: those of two different sets are not equal.
        numbers = np.random.default_rng(0).integers(1, 2**62, len(touched), dtype=np.uint64)
        roles = np.zeros(self.channel.max() + 1, dtype=np.uint64)
        for names, number in zip(touched, numbers, strict=True):
            np.add.at(roles, self.channel[names[names > 0]], number)
        return roles

    def _pair(self, spaces: list[Space]) -> None:
        """Queries know their values, and per-head channels (position biases) too."""
        for attention in self.attentions:
            places = {
                part: int(self.space_of[self.channel[names.ravel()[0]]])
                for part in ("query", "value", "heads")
                if (names := getattr(attention, part)) is not None
            }
            if "query" not in places or "value" not in places:
                for number in places.values():
                    spaces[number].kind = "fixed"
                continue
            spaces[places["query"]].partner = places["value"]
            spaces[places["value"]].partner = places["query"]
            spaces[places["heads"]].partner = places["value"]
            spaces[places["heads"]].kind = "head"

    def _matrix_kinds(self, spaces: list[Space]) -> None:
        """Where no operation looks at single channels, they may be mixed."""
        kinds = {}
        for kind in ("none", "positive", "norm", "tied"):
            names = np.concatenate([*self.trace.marks[kind], np.zeros(0, dtype=np.int64)])
            kinds[kind] = set(np.unique(self.space_of[self.channel[names]]).tolist()) if len(names) else set()
        for number, space in enumerate(spaces):
            space.normed = number in kinds["norm"]
            plain = number not in kinds["none"] | kinds["positive"] | kinds["tied"]
            if space.kind == "permutation" and plain:
                space.kind = "orthogonal" if number in kinds["norm"] else "linear"
            elif space.kind == "heads" and (not plain or number in kinds["norm"]):
                # Normalised or rotated queries: only the heads may change places.
                space.kind = "fixed"

    # Axes

    def _parameter_uses(self) -> Iterator[Use]:
        """Parameters that are added element by element: embeddings, position biases, shifts of normalisations."""
        for name, ids in self.trace.parameter_ids.items():
            if name in self.trace.scalers or any(use.tensor == name for use in self.trace.uses):
                continue
            channels = torch.from_numpy(self.channel)[ids]
            for axis in range(ids.ndim):
                others = [a for a in range(ids.ndim) if a != axis]
                first = channels
                for other in others:
                    first = first.narrow(other, 0, 1)
                if ids.shape[axis] > 1 and torch.equal(first.expand_as(channels), channels):
                    chosen = ids
                    for other in sorted(others, reverse=True):
                        chosen = chosen.select(other, 0)
                    if (self.space_of[self.channel[chosen.numpy()]] >= 0).all():
                        yield Use(name, axis, "out", chosen.numpy())

    def _segments(
        self, ids: np.ndarray, spaces: list[Space], scales: dict[tuple[int, ...], int]
    ) -> tuple[Segment, ...] | None:
        """An axis as whole spaces one after the other; `None` where it is none."""
        if not (ids > 0).any():
            return ()
        if not (ids > 0).all():
            return None
        number, place, scale = self.space_of[self.channel[ids]], self.place_of[self.channel[ids]], self.scale[ids]
        if (number < 0).any():
            return None
        segments, at = [], 0
        while at < len(ids):
            space = int(number[at])
            size = spaces[space].size
            same = np.flatnonzero(number[at:] != space)
            run = int(same[0]) if len(same) else len(ids) - at
            repeat = 1
            while repeat < run and place[at + repeat] == place[at]:
                repeat += 1
            if size == 1:
                repeat = 1
            length = size * repeat
            part = slice(at, at + length)
            if not np.array_equal(place[part], np.repeat(np.arange(size), repeat)):
                return None
            key = (space, *scale[part][::repeat].tolist())
            dual = bool(np.isin(ids[at], self.keys))
            segments.append(Segment(space, scales.setdefault(key, len(scales)), size, repeat, dual))
            at += length
        return tuple(segments)

    def _scale_kinds(self, keys: list[tuple[int, ...]], spaces: list[Space]) -> list[str]:
        marked = {
            kind: np.unique(self.scale[np.concatenate([*self.trace.marks[kind], np.zeros(0, dtype=np.int64)])])
            for kind in ("none", "norm", "positive", "fixed")
        }
        kinds = []
        for space, *labels in keys:
            if spaces[space].kind != "permutation" or any(
                np.isin(labels, marked[kind]).any() for kind in ("none", "norm", "fixed")
            ):
                kinds.append("none")
            else:
                kinds.append("positive" if np.isin(labels, marked["positive"]).any() else "any")
        return kinds


def _merged(attentions: list[Attention], channel: np.ndarray) -> list[Attention]:
    """Scores and weighted values of one attention may be two operations with the same heads."""
    merged: dict[int, Attention] = {}
    for item in attentions:
        known = merged.setdefault(int(channel[item.heads[0]]), Attention(item.heads))
        for part in ("query", "key", "value"):
            if getattr(item, part) is not None:
                setattr(known, part, getattr(item, part))
    return list(merged.values())


def components(pairs: list[np.ndarray], count: int) -> np.ndarray:
    """Label of every name, `[count + 1]`."""
    if not pairs:
        return np.arange(count + 1)
    rows, columns = np.concatenate(pairs, axis=1)
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count + 1, count + 1))
    return connected_components(graph, directed=False)[1]
