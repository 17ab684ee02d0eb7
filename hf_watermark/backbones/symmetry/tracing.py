"""
Follows every channel of a network through its exported graph.

Each activation is replaced by a tensor of the same shape that holds integers: the name of the channel an element belongs to (0: none). A
layer gives new names to its outputs; operations that only move elements (reshape, permute, split, roll ...) are executed on the names
as they are; an addition says that two names mean the same channel. So heads, windows, concatenations and flattenings need no rule of
their own. Nothing here knows an architecture.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..treatment import Treatment


Ids = torch.Tensor
MOST_NAMES = 2**23
# In place of a name, of what an operation without a rule returns. A constant has none (0).
UNKNOWN = -1


class Untraceable(ValueError):
    """The graph holds something whose symmetries are not known."""


@dataclass(frozen=True)
class Use:
    """
    Where one axis of a tensor touches channels.

    Args:
        tensor (`str`):
            Parameter name.
        axis (`int`):
            Axis of the tensor.
        flow (`str`):
            `"out"`: the tensor writes these channels (rows, biases, embeddings); `"in"`: it reads them (columns). A depthwise
            weight does both on one axis.
        ids (`np.ndarray`):
            Channel of every index of the axis.
    """

    tensor: str
    axis: int
    flow: str
    ids: np.ndarray


@dataclass
class Value:
    """
    An activation (`ids`), a constant (`constant`), a parameter that was not touched yet (`parameter`), or a weight that is computed from parameters
    (`computed`, their names).
    """

    ids: Ids | None = None
    constant: Any = None
    parameter: str | None = None
    computed: tuple[str, ...] = ()
    # The parameter whose elements these are, moved but not computed with.
    origin: str | None = None
    # The layer whose output this is, as long as nothing else reads it; and the normalisation behind which it lies.
    writer: str | None = None
    norm: str | None = None


@dataclass
class Norm:
    """A layer normalisation with an affine part over the channels `ids`; `readers` are the weights that read its output."""

    weight: str
    bias: str | None
    ids: np.ndarray
    readers: list[str] = field(default_factory=list)


@dataclass
class Attention:
    """Channels of one attention: `query`, `key`, `value` of shape `[heads, dim]`, and one name per head."""

    heads: np.ndarray
    query: np.ndarray | None = None
    key: np.ndarray | None = None
    value: np.ndarray | None = None


class Trace:
    """
    What the graph says about channels; the rules fill it.

    Attributes:
        links, scale_links, sum_links: Pairs of names that are one channel; those of the second list also have one scale, and those of the third are
            not two factors of a product.
        marks: By kind of operation, names that pass through it: `fixed`, `none` (no scale passes), `positive` (positive scales
            pass), `norm` (normalised over the channels), `tied` (multiplied one by one).
        blocks: Names that one layer wrote.
    """

    def __init__(
        self, unfoldable: frozenset[str] = frozenset(), treated: Mapping[str, Treatment | None] | None = None
    ):
        # Weights of which something else is used than they are, and what.
        self.treated = {name: how for name, how in (treated or {}).items() if how is not None and not how.direct}
        self.count = 0
        self.links: list[np.ndarray] = []
        self.scale_links: list[np.ndarray] = []
        self.sum_links: list[np.ndarray] = []
        self.marks: dict[str, list[np.ndarray]] = {kind: [] for kind in ("fixed", "none", "positive", "norm", "tied")}
        # Of every name so far, whether it is marked `none`.
        self._unscaled = np.zeros(1024, dtype=bool)
        self.blocks: list[np.ndarray] = []
        self.uses: list[Use] = []
        self.attentions: list[Attention] = []
        # Constant tensors that meet channels: where they differ between channels, these are fixed.
        self.constants: list[tuple[Ids, torch.Tensor]] = []
        self.norms: dict[str, Norm] = {}
        self.unfoldable = set(unfoldable)
        self.scalers: dict[str, str] = {}
        self.parameter_ids: dict[str, Ids] = {}
        # Parameters that an operation without a rule takes whole.
        self.untouched: set[str] = set()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.biases: dict[str, str] = {}
        # Of every weight, at how many places it writes its channels.
        self.positions: dict[str, int] = {}

    # What rules say

    def fresh(self, size: int) -> np.ndarray:
        start = self.count + 1
        self.count += size
        if self.count > MOST_NAMES:
            raise Untraceable("weights are computed from weights, element by element")
        return np.arange(start, start + size)

    def block(self, size: int) -> np.ndarray:
        ids = self.fresh(size)
        self.blocks.append(ids)
        return ids

    def ids(self, value: Value) -> Ids | None:
        """Names of a value's elements; a parameter that is read element by element gets one name per element."""
        if value.parameter is not None:
            name = value.parameter
            if name not in self.parameter_ids:
                shape = self.shapes[name]
                self.parameter_ids[name] = torch.from_numpy(self.fresh(int(np.prod(shape)))).reshape(shape)
                if name in self.untouched:
                    self.mark("fixed", self.parameter_ids[name])
            return self.parameter_ids[name]
        return value.ids

    def activation(self, value: Value) -> Ids:
        """Names of what a layer reads: none of a constant, such as a table of positions."""
        ids = self.ids(value)
        return torch.zeros(value.constant.shape, dtype=torch.int64) if ids is None else ids

    def link(self, first: Any, second: Any, scale: bool = True, product: bool = False) -> None:
        """Says that names at equal places are the same channel; 0 is no name."""
        if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
            first, second = thinned(first, second)
        pairs = np.stack([np.asarray(first).ravel(), np.asarray(second).ravel()])
        pairs = pairs[:, (pairs[0] != pairs[1]) & (pairs > 0).all(axis=0)]
        if not pairs.size:
            return
        # As one number per pair, which sorts ten times faster than rows do.
        pairs = np.stack(np.divmod(np.unique(pairs[0] * (self.count + 1) + pairs[1]), self.count + 1))
        self.links.append(pairs)
        if scale:
            self.scale_links.append(pairs)
        if not product:
            self.sum_links.append(pairs)

    def mark(self, kind: str, ids: Any) -> None:
        names = np.unique(np.asarray(thinned(ids)[0] if isinstance(ids, torch.Tensor) else ids))
        names = names[names > 0]
        self.marks[kind].append(names)
        if kind == "none" and len(names):
            missing = self.count + 1 - len(self._unscaled)
            if missing > 0:
                self._unscaled = np.pad(self._unscaled, (0, missing + len(self._unscaled)))
            self._unscaled[names] = True

    def unscaled(self, ids: Ids) -> bool:
        """Whether no scale passes any of these names."""
        names = thinned(ids)[0].numpy()
        return bool(names.max(initial=0) < len(self._unscaled) and self._unscaled[names].all())

    def along(self, ids: Ids, *axes: int) -> np.ndarray:
        """One name per index of these axes, all others linked to it."""
        axes = tuple(axis % ids.ndim for axis in axes)
        others = [axis for axis in range(ids.ndim) if axis not in axes]
        ids = thinned(ids, but=axes)[0]
        first = ids.amax(dim=others, keepdim=True) if others else ids
        if not torch.equal(first.expand_as(ids), ids):
            self.link(first.expand_as(ids), ids)
        return first.permute(*axes, *others).reshape([ids.shape[axis] for axis in axes]).numpy()

    def spread(self, ids: np.ndarray, shape: Sequence[int], axis: int) -> Ids:
        """Names `[n]` along one axis of a shape."""
        sizes = [1] * len(shape)
        sizes[axis] = len(ids)
        return torch.from_numpy(ids).reshape(sizes).expand(tuple(shape))

    def relabel(self, ids: Ids) -> Ids:
        """New names for the same channels, whose scales are their own."""
        [thin] = thinned(ids)
        names, place = torch.unique(thin, return_inverse=True)
        new = torch.from_numpy(self.fresh(len(names)))
        self.link(names[names > 0], new[names > 0], scale=False)
        return torch.where(names > 0, new, names)[place].expand(ids.shape)

    def consumed(self, value: Value) -> None:
        """Something other than a layer read this: a normalisation in front of it cannot be folded."""
        if value.norm is not None:
            self.unfoldable.add(value.norm)

    def stands_for(self, value: Value, shape: Sequence[int]) -> str | None:
        """The parameter whose rows and columns a computed weight has."""
        found = [name for name in value.computed if name in self.treated and self.shapes[name] == tuple(shape)]
        return found[0] if len(found) == 1 else None

    def nonlinear(self, value: Value) -> Value:
        ids = self.ids(value)
        self.consumed(value)
        self.mark("none", ids)
        result = self.relabel(ids)  # type: ignore[arg-type]
        self.mark("none", result)
        return Value(ids=result)

    def unknown(self, node: Any, values: Iterable[Value]) -> Any:
        """An operation without a rule: nothing that enters it may change."""
        for value in values:
            if value.parameter is not None and value.parameter not in self.parameter_ids:
                self.untouched.add(value.parameter)  # names for all its elements would only cost time
            elif value.ids is not None or value.parameter is not None:
                self.consumed(value)
                self.mark("fixed", self.ids(value))
        result = node.meta["val"]
        if isinstance(result, torch.Tensor):
            return Value(ids=torch.tensor(UNKNOWN).expand(result.shape))
        return [Value(ids=torch.tensor(UNKNOWN).expand(item.shape)) for item in result]

    def held_by_unknown(self, first: Ids, second: Ids) -> None:
        """What meets something of which no channel is known may not change."""
        for one, other in ((first, second), (second, first)):
            if (thinned(one)[0] == UNKNOWN).any():
                self.mark("fixed", other)


def thinned(*tensors: Ids, but: Sequence[int] = ()) -> list[Ids]:
    """Tensors of one shape of which axes have length 1 along which all of them repeat themselves, as their strides say."""
    for axis in range(tensors[0].ndim):
        if axis not in but and all(tensor.stride(axis) == 0 for tensor in tensors):
            tensors = tuple(tensor.narrow(axis, 0, min(1, tensor.shape[axis])) for tensor in tensors)
    return list(tensors)


def repeating(ids: Ids) -> Ids:
    """The same names with stride 0 along every axis along which they do not change, so that further rules look at few of them."""
    thin = ids
    for axis, size in enumerate(ids.shape):
        if size > 1 and ids.stride(axis) and torch.equal(thin, thin.narrow(axis, 0, 1).expand_as(thin)):
            thin = thin.narrow(axis, 0, 1)
    return thin.expand(ids.shape)


Rule = Callable[[Trace, Any, tuple, dict], Any]
GETITEM = operator.getitem
