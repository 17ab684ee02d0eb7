"""One rule per kind of operation: which channels it reads, writes, couples, and what it lets pass."""

from dataclasses import replace
from typing import Any

import torch

from .layers import attention, batch_norm, convolution, diagonal, layer_norm, linear, matmul, softmax
from .tracing import GETITEM, Rule, Trace, Value, repeating, thinned


# Elements move, but are not computed with.
MOVES = {
    "permute", "reshape", "view", "contiguous", "expand", "expand_as", "select", "slice", "unbind", "cat", "stack", "roll", "transpose",
    "unsqueeze", "squeeze", "flatten", "unflatten", "index", "alias", "clone", "split", "split_with_sizes", "chunk", "repeat", "movedim",
    "flip", "narrow", "t", "pad", "constant_pad_nd", "masked_fill", "getitem",
}  # fmt: skip
SAME = {
    "dropout",
    "feature_dropout",
    "to",
    "_to_copy",
    "detach",
    "identity",
    "neg",
    "_assert_tensor_metadata",
    "lift_fresh_copy",
    "copy",
}
POSITIVE = {"relu", "leaky_relu"}
# Averages over positions: names stay along axis 1 (the others are one position each).
POOLS = {
    "avg_pool2d",
    "avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool1d",
    "upsample_bilinear2d",
    "upsample_nearest2d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
    "interpolate",
}
MAX_POOLS = {"max_pool2d", "adaptive_max_pool2d"}
NONLINEAR = {
    "gelu", "silu", "sigmoid", "hardswish", "hardsigmoid", "hardtanh", "relu6", "tanh", "elu", "mish", "softmax", "_softmax", "softplus", "exp",
    "sqrt", "rsqrt", "pow", "abs", "clamp", "celu", "log_softmax",
}  # fmt: skip


def apply(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Any:
    """The value of one node."""
    name = "getitem" if node.target is GETITEM else node.target._opname.rstrip("_")
    values = [item for item in torch.utils._pytree.tree_leaves((args, kwargs), is_leaf=_is_value) if _is_value(item)]
    if all(value.ids is None and value.parameter is None for value in values):
        return _constant(node, args, kwargs)
    if name in RULES:
        return RULES[name](trace, node, args, kwargs)
    if name in MOVES:
        return _move(trace, node, args, kwargs, values)
    if name in SAME:
        return args[0]
    if name in POSITIVE:
        trace.consumed(args[0])
        trace.mark("positive", trace.ids(args[0]))
        return Value(ids=trace.ids(args[0]))
    if name in POOLS or name in MAX_POOLS:
        return _pool(trace, node, args[0], name in MAX_POOLS)
    if name in NONLINEAR:
        return trace.nonlinear(args[0])
    return trace.unknown(node, values)


def _is_value(item: Any) -> bool:
    return isinstance(item, Value)


def _constant(node: Any, args: tuple, kwargs: dict) -> Any:
    """Executed as it is, on the CPU."""
    if not isinstance(node.meta.get("val"), torch.Tensor | list | tuple):
        return None

    def plain(item: Any) -> Any:
        return item.constant if _is_value(item) else item

    tree_map = torch.utils._pytree.tree_map
    args, kwargs = (tree_map(plain, part, is_leaf=_is_value) for part in (args, dict(kwargs)))
    result = node.target(*args, **{name: item for name, item in kwargs.items() if name != "device"})
    if isinstance(result, list | tuple):
        return [Value(constant=item) for item in result]
    return Value(constant=result)


def _move(trace: Trace, node: Any, args: tuple, kwargs: dict, values: list[Value]) -> Any:
    if node.target is GETITEM:
        return args[0][args[1]]
    tracked = [value for value in values if value.ids is not None or value.parameter is not None]

    def names(item: Any) -> Any:
        if not _is_value(item):
            return item
        found = trace.ids(item)
        if found is not None:
            return found
        # An index or a mask is needed as it is; a constant that is put between names has none.
        constant = item.constant
        return torch.zeros(constant.shape, dtype=torch.int64) if constant.is_floating_point() else constant

    tree_map = torch.utils._pytree.tree_map
    args, kwargs = (tree_map(names, part, is_leaf=_is_value) for part in (args, dict(kwargs)))
    opname = node.target._opname
    if opname in ("masked_fill", "masked_fill_"):
        moved: Any = args[0]
    elif opname in ("pad", "constant_pad_nd"):
        moved = torch.nn.functional.pad(args[0], args[1])
    else:
        moved = node.target(*args, **kwargs)
    tags = _tags(trace, node, tracked)
    if isinstance(moved, list | tuple):
        return [Value(ids=repeating(item), **tags) for item in moved]
    return Value(ids=repeating(moved), **tags)


def _tags(trace: Trace, node: Any, tracked: list[Value]) -> dict[str, Any]:
    """What a moved value still belongs to."""
    norms = {value.norm for value in tracked}
    padded = node.target._opname in ("pad", "constant_pad_nd") and any(node.args[1])
    if len(norms) > 1 or padded:
        for value in tracked:
            trace.consumed(value)
        norms = {None}
    alone = len(tracked) == 1 and len(node.users) == 1 and not padded
    origin = (tracked[0].parameter or tracked[0].origin) if len(tracked) == 1 else None
    return {"norm": next(iter(norms)), "writer": tracked[0].writer if alone else None, "origin": origin}


def _pool(trace: Trace, node: Any, value: Value, maximum: bool) -> Value:
    ids = trace.activation(value)
    if maximum:
        trace.consumed(value)
        trace.mark("positive", ids)
    shape = node.meta["val"].shape
    channel = 1 if len(shape) > 2 else 0
    return Value(ids=trace.spread(trace.along(ids, channel), shape, channel), norm=None if maximum else value.norm)


# Arithmetic


def _add(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    first, second = args[:2]
    for item in (first, second):
        if _is_value(item):
            trace.consumed(item)
    numbers = [item for item in (first, second) if _is_number(trace, item)]
    if numbers:
        return trace.nonlinear(second if numbers[0] is first else first)  # added to every channel, it fixes the scale
    one, two = trace.ids(first), trace.ids(second)
    if one is None or two is None:
        return _with_constant(trace, one if two is None else two, second if two is None else first)  # type: ignore[arg-type]
    one, two = torch.broadcast_tensors(one, two)
    trace.held_by_unknown(one, two)
    trace.link(one, two)
    first, second = thinned(one, two)
    return Value(ids=torch.where(first > 0, first, second).expand(one.shape))


def _is_number(trace: Trace, item: Any) -> bool:
    """One number for all channels: of the code, or a learned one."""
    if not _is_value(item):
        return True
    return item.parameter is not None and not any(size > 1 for size in trace.shapes[item.parameter])


def _with_constant(trace: Trace, ids: torch.Tensor, other: Value) -> Value:
    ids, constant = torch.broadcast_tensors(ids, other.constant)
    if other.constant.numel() > 1:
        trace.constants.append((ids, constant))
    return Value(ids=ids)


def _mul(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    first, second = args[:2]
    numbers = [item for item in (first, second) if _is_number(trace, item)]
    if numbers:
        value = second if numbers[0] is first else first
        trace.consumed(value)  # the shift of a normalisation is not what its reader sees
        inverse = node.target._opname == "div" and value is second
        return trace.nonlinear(value) if inverse else replace(value, norm=None)
    if first.parameter or first.origin:
        first, second = second, first
    if (second.parameter or second.origin) and first.ids is not None and not first.origin:
        return _scaled_by_parameter(trace, node, first, second)
    for item in (first, second):
        trace.consumed(item)
    one, two = trace.ids(first), trace.ids(second)
    if one is None or two is None:
        return _with_constant(trace, one if two is None else two, second if two is None else first)  # type: ignore[arg-type]
    one, two = torch.broadcast_tensors(one, two)
    trace.held_by_unknown(one, two)
    trace.link(one, two, scale=False, product=True)
    if trace.unscaled(two):  # a gate without a scale of its own
        return Value(ids=one)
    if trace.unscaled(one):
        return Value(ids=two)
    trace.mark("none", one)
    trace.mark("none", two)
    return Value(ids=one)


def _scaled_by_parameter(trace: Trace, node: Any, value: Value, parameter: Value) -> Value:
    name, ids = parameter.parameter or parameter.origin, value.ids
    assert name is not None and ids is not None
    shape = trace.shapes[name] if parameter.ids is None else tuple(parameter.ids.shape)
    wide = [axis for axis, size in enumerate(shape) if size > 1]
    trace.consumed(value)
    if len(wide) != 1:
        return trace.unknown(node, [value])
    if value.writer is not None and name not in trace.unfoldable:
        # LayerScale: folded into the layer before it, so it is the identity here.
        trace.scalers[name] = value.writer
        return Value(ids=ids)
    return diagonal(trace, value, name, None, node.meta["val"].shape, ids.ndim - len(shape) + wide[0])


def _mean(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    value, axes = args[0], args[1] if len(args) > 1 else None
    keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    ids = trace.ids(value)
    if ids is None or not axes:
        return trace.unknown(node, [value])
    kept = [axis for axis in range(ids.ndim) if axis not in {a % ids.ndim for a in axes}]
    [thin] = thinned(ids)
    first = thin.amax(dim=list(axes), keepdim=True)
    if not torch.equal(first.expand_as(thin), thin):
        varying = [a for a in axes if not torch.equal(thin.amax(dim=a), -(-thin).amax(dim=a))]
        if varying and kept:
            trace.link(first.expand_as(thin), thin)
    sizes = [ids.shape[axis] if axis in kept else 1 for axis in range(ids.ndim)]
    found = first.expand(sizes)
    return Value(ids=found if keep else _without(found, axes), norm=value.norm)


def _without(ids: torch.Tensor, axes: list[int]) -> torch.Tensor:
    for axis in sorted((axis % ids.ndim for axis in axes), reverse=True):
        ids = ids.select(axis, 0)
    return ids


RULES: dict[str, Rule] = {
    "linear": linear,
    "conv1d": convolution,
    "conv2d": convolution,
    "layer_norm": layer_norm,
    "batch_norm": batch_norm,
    "add": _add,
    "sub": _add,
    "mul": _mul,
    "div": _mul,
    "mean": _mean,
    "sum": _mean,
    "scaled_dot_product_attention": attention,
    "matmul": matmul,
    "bmm": matmul,
    "softmax": softmax,
    "_softmax": softmax,
}
