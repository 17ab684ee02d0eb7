"""
What the forward pass does to a weight before it uses it: nothing, or standardise its rows, divide them by their norm, round them ...

Such a step leaves a thief freedoms that change no answer. Where only the mean of a row means nothing (weight standardisation), rows are read
without it. Where a vector scales the rows of what was normalised (weight normalisation), its signs belong to what is read. A weight with any other
step (spectral normalisation, fake quantisation, a sum of weights) is left out.

One forward pass records which functions lie between a parameter and the activation that it meets. They are run again on random numbers: what
they leave free shows in what they return. No class is known by name.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .examples import likely_images
from .families import is_vector
from .folding import evaluation_mode
from .sharding import is_sharded


# Length of a sequence of colours.
PIXELS = 64
# Functions in which a matrix meets an activation.
MEETS = {
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm",
    "baddbmm", "einsum", "multi_head_attention_forward",
}  # fmt: skip
# Functions through which a channel goes with its sign, times that of a parameter among their arguments.
PASSES = {
    "batch_norm", "mul", "__mul__", "__rmul__", "multiply", "div", "__truediv__", "permute", "reshape", "view", "transpose", "flatten", "contiguous", "dropout",
    "squeeze", "unsqueeze", "movedim", "to", "float", "clone", "neg",
}  # fmt: skip
# Cosine between a row and what is computed from it, from which on both have the same signs.
SAME = 0.9999
EQUAL = 1e-3
_KNOWN: "WeakKeyDictionary[nn.Module, tuple[dict[str, torch.Size], Observation]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Treatment:
    """
    How the rows of a weight are used.

    Args:
        direct (`bool`):
            Whether the weight is used as it is.
        centred (`bool`):
            Whether a number that is added to all weights of a row changes nothing.
        scale (`str`, *optional*):
            The vector whose signs the rows are multiplied by.
    """

    direct: bool = True
    centred: bool = False
    scale: str | None = None


@dataclass(frozen=True)
class Observation:
    """
    What one forward pass shows of a model's parameters; nothing where the model cannot be run.

    Args:
        treatments (`dict[str, Treatment | None]`):
            How each parameter is used that meets an activation as a matrix; `None` where no mark could be read from it.
        behind (`dict[str, tuple[str, ...]]`):
            Per such parameter, all others whose signs turn its rows, before or after they meet the activation.
    """

    treatments: dict[str, Treatment | None] = field(default_factory=dict)
    behind: dict[str, tuple[str, ...]] = field(default_factory=dict)


def observe(model: nn.Module) -> Observation:
    """
    Args:
        model (`nn.Module`):
            A vision model. It is not changed, and its numbers say nothing here.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    known, seen = _KNOWN.get(model, ({}, Observation()))
    if known != shapes:
        # Where each process holds a part, all of them would have to run it at once.
        seen = Observation() if is_sharded(model) else _observed(model)
        _KNOWN[model] = shapes, seen
    return seen


def _observed(model: nn.Module) -> Observation:
    for form in (_without_values, _with_values):  # control flow on numbers needs these
        for image in _examples(model):
            try:
                module = form(model)
                image = image.to(next(module.parameters()).device)
                record = _Record(module, image)
                with torch.no_grad(), evaluation_mode(module), record:
                    module(image)
            except Exception:  # models fail in many ways, and another size or form may do
                continue
            return record.observation()
    return Observation()


def _examples(model: nn.Module) -> Iterable[torch.Tensor]:
    if getattr(model, "main_input_name", "") == "input_ids":  # pictures as sequences of colours
        return [torch.zeros(1, PIXELS, dtype=torch.int64)]
    return likely_images(model)


def _without_values(model: nn.Module) -> nn.Module:
    empty: dict[int, Any] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in model.buffers()}
    for parameter in model.parameters():
        empty[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    return copy.deepcopy(model, empty)


def _with_values(model: nn.Module) -> nn.Module:
    # A copy, because observers of fake quantisation write into buffers.
    try:
        return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    except RuntimeError:  # weights that hooks compute cannot be copied
        return model


@dataclass(eq=False)
class _Made:
    """A tensor that is computed from parameters and constants alone: `leaf` where it is one, else what computes it."""

    leaf: torch.Tensor | None = None
    function: Any = None
    given: Any = None
    place: int = 0
    leaves: "list[_Made]" = field(default_factory=list)

    def compute(self, numbers: dict[int, Any]) -> Any:
        """Its numbers from those of the leaves."""
        if id(self) not in numbers:
            key = id(self.function), id(self.given)
            if key not in numbers:  # type: ignore[comparison-overlap]
                args, kwargs = pytree.tree_map(
                    lambda item: item.compute(numbers) if isinstance(item, _Made) else item, self.given
                )
                if "device" in kwargs:
                    kwargs["device"] = "cpu"
                numbers[key] = pytree.tree_leaves(self.function(*args, **kwargs))  # type: ignore[index]
            numbers[id(self)] = numbers[key][self.place]  # type: ignore[index]
        return numbers[id(self)]

    def signature(self, known: dict[int, str]) -> str:
        """Equal for two that compute alike from leaves of equal shapes."""
        if id(self) not in known:
            known[id(self)] = f"#{len(known)}"
            if self.leaf is not None:
                return f"{tuple(self.leaf.shape)}{self.leaf.dtype}{isinstance(self.leaf, nn.Parameter)}"
            parts = [
                item.signature(known) if isinstance(item, _Made) else repr(item)
                for item in pytree.tree_leaves(self.given)
            ]
            return f"{self.function}{self.place}({','.join(parts)})"
        return known[id(self)]


class _Record(TorchFunctionMode):
    """Follows what is computed from parameters alone, until it meets an activation."""

    def __init__(self, model: nn.Module, image: torch.Tensor):
        super().__init__()
        self.names = {id(parameter): name for name, parameter in reversed(list(model.named_parameters()))}
        self.activations = {id(image)}
        self.made: dict[int, _Made] = {}
        # A freed tensor would lend its id to another one.
        self.kept: list[torch.Tensor] = [image]
        self.uses: dict[str, list[_Made]] = {}
        # Parameters that an activation has the rows of, and what turned its signs since.
        self.written: dict[int, tuple[str, ...]] = {}
        self.behind: dict[str, set[str]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        tensors = [item for item in pytree.tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)]
        results = [item for item in pytree.tree_leaves(result) if isinstance(item, torch.Tensor)]
        if not results:
            return result
        name = getattr(function, "__name__", "")
        if any(id(item) in self.activations for item in tensors):
            met = [self._of(item) for item in tensors if id(item) not in self.activations]
            if name in MEETS:
                self._note(met)
                self.written[id(results[0])] = tuple(n for item in met[:1] for n in self._parameters(item))
            elif name.rstrip("_") in PASSES or name in PASSES:
                self._pass(tensors, met, results)
            self.activations |= {id(item) for item in results}
        else:
            self._follow(function, args, kwargs, results)
        self.kept += results
        return result

    def _of(self, tensor: torch.Tensor) -> _Made:
        if id(tensor) not in self.made:
            self.kept.append(tensor)
            leaf = self.made[id(tensor)] = _Made(tensor)
            leaf.leaves = [leaf]
        return self.made[id(tensor)]

    def _follow(self, function: Any, args: Any, kwargs: Any, results: list[torch.Tensor]) -> None:
        given = pytree.tree_map(
            lambda item: self._of(item) if isinstance(item, torch.Tensor) else item, (args, kwargs)
        )
        sources = [item for item in pytree.tree_leaves(given) if isinstance(item, _Made)]
        leaves = list(dict.fromkeys(leaf for item in sources for leaf in item.leaves))
        for place, item in enumerate(results):
            # What was changed in place is another number from now on.
            self.made[id(item)] = _Made(None, function, given, place, leaves)

    def _parameters(self, item: _Made) -> list[str]:
        return [self.names[id(leaf.leaf)] for leaf in item.leaves if id(leaf.leaf) in self.names]

    def _note(self, met: list[_Made]) -> None:
        for item in met:
            for name in self._parameters(item):
                self.uses.setdefault(name, []).append(item)

    def _pass(self, tensors: list[torch.Tensor], met: list[_Made], results: list[torch.Tensor]) -> None:
        """An activation keeps its writers through a function that takes at most parameters beside it."""
        moving = [self.written[id(item)] for item in tensors if id(item) in self.written]
        if len(moving) != 1 or sum(id(item) in self.activations for item in tensors) != 1:
            return
        self.written[id(results[0])] = moving[0]
        # Of a normalisation's parameters the first one scales, the second one shifts.
        scales = [name for item in met for name in self._parameters(item)][:1]
        for name in moving[0]:
            self.behind.setdefault(name, set()).update(scales)

    def observation(self) -> Observation:
        probed: dict[Any, tuple[bool, int | None] | None] = {}
        found = {}
        for name, uses in self.uses.items():
            ways = {self._way(name, use, probed) for use in dict.fromkeys(uses)}
            how = found[name] = ways.pop() if len(ways) == 1 else None
            if how is not None and how.scale is not None:
                self.behind.setdefault(name, set()).add(how.scale)
        return Observation(found, {name: tuple(sorted(behind)) for name, behind in self.behind.items() if behind})

    def _way(self, name: str, use: _Made, probed: dict[Any, tuple[bool, int | None] | None]) -> Treatment | None:
        if use.leaf is not None:
            return Treatment()
        own, leaf = next(item for item in enumerate(use.leaves) if self.names.get(id(item[1].leaf)) == name)
        if leaf.leaf is None or leaf.leaf.ndim < 2 or min(len(leaf.leaf), leaf.leaf[0].numel()) < 2:
            return None
        key = use.signature({}), own
        if key not in probed:
            try:
                probed[key] = _probe(use, own)
            except Exception:  # a function that cannot be run again on other numbers
                probed[key] = None
        found = probed[key]
        if found is None:
            return None
        scale = None if found[1] is None else self.names[id(use.leaves[found[1]].leaf)]
        return Treatment(False, found[0], scale)


def _probe(use: _Made, own: int) -> tuple[bool, int | None] | None:
    """
    Whether the rows of one leaf may be shifted, and which other leaf has their signs; `None` where what is computed has not the signs of the rows, or
    where something else than such a leaf turns them.
    """
    numbers = _random(use.leaves)
    weight = numbers[own]
    rows, columns = len(weight), math.prod(weight.shape[1:])

    def computed(changed: dict[int, torch.Tensor]) -> torch.Tensor:
        given = {id(leaf): changed.get(number, numbers[number]) for number, leaf in enumerate(use.leaves)}
        return use.compute(given)

    plain = computed({})
    if len(plain) != rows or plain.numel() != weight.numel() or not plain.isfinite().all():
        return None
    plain = plain.reshape(rows, columns)

    def equal(changed: dict[int, torch.Tensor], wanted: torch.Tensor) -> bool:
        difference = (computed(changed).reshape(rows, columns) - wanted).abs().amax()
        return bool(difference <= EQUAL * wanted.abs().amax())

    steps = torch.linspace(-1, 1, rows).reshape(-1, *[1] * (weight.ndim - 1))
    centred = equal({own: weight + steps}, plain)
    matrix = weight.reshape(rows, columns)
    cosine = torch.cosine_similarity(plain, matrix - matrix.mean(1, keepdim=True) if centred else matrix, dim=1)
    if not bool((cosine.abs() >= SAME).all()) or not equal({own: -weight}, -plain):
        return None
    turning = []
    for number, leaf in enumerate(use.leaves):
        if number == own or not numbers[number].is_floating_point():
            continue
        turned = {number: -numbers[number]}
        if equal(turned, -plain) and isinstance(leaf.leaf, nn.Parameter) and is_vector(leaf.leaf.shape, rows):
            turning.append(number)
        elif not equal(turned, plain):
            return None
    signs = numbers[turning[0]].flatten().sign() if turning else torch.ones(rows)
    if len(turning) > 1 or not torch.equal(cosine.sign(), signs):
        return None
    return centred, turning[0] if turning else None


def _random(leaves: Sequence[_Made]) -> list[torch.Tensor]:
    """Numbers for the leaves, none of which is near zero where it is a parameter."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for leaf in leaves:
        assert leaf.leaf is not None
        shape, kind = leaf.leaf.shape, leaf.leaf.dtype
        if not kind.is_floating_point:
            found.append(torch.zeros(shape, dtype=kind) if leaf.leaf.is_meta else leaf.leaf)
            continue
        values = torch.randn(shape, generator=generator)
        found.append(values + 0.1 * values.sign())
    return found
