"""One rule per kind of operation: which channels it reads, writes, couples, and what it lets pass."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .tracing import GETITEM, Attention, Norm, Rule, Trace, Use, Value


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
        return _nonlinear(trace, args[0])
    return _unknown(trace, node, values)


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
        return [Value(ids=item, **tags) for item in moved]
    return Value(ids=moved, **tags)


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
    ids = trace.ids(value)
    assert ids is not None
    if maximum:
        trace.consumed(value)
        trace.mark("positive", ids)
    shape = node.meta["val"].shape
    channel = 1 if len(shape) > 2 else 0
    return Value(ids=trace.spread(trace.along(ids, channel), shape, channel), norm=None if maximum else value.norm)


def _nonlinear(trace: Trace, value: Value) -> Value:
    ids = trace.ids(value)
    trace.consumed(value)
    trace.mark("none", ids)
    result = trace.relabel(ids)  # type: ignore[arg-type]
    trace.mark("none", result)
    return Value(ids=result)


def _unknown(trace: Trace, node: Any, values: Iterable[Value]) -> Any:
    """An operation without a rule: nothing that enters it may change."""
    for value in values:
        if value.ids is not None or value.parameter is not None:
            trace.consumed(value)
            trace.mark("fixed", trace.ids(value))
    result = node.meta["val"]
    if isinstance(result, torch.Tensor):
        return Value(ids=torch.zeros(result.shape, dtype=torch.int64))
    return [Value(ids=torch.zeros(item.shape, dtype=torch.int64)) for item in result]


# Layers


def _linear(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    value, weight, bias = (*args, None)[:3]
    return _layer(trace, node, value, weight, bias, channel=-1)


def _convolution(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    value, weight, bias, _, padding, _, groups = (*args, *[None, 1, 0, 1, 1][len(args) - 2 :])[:7]
    padded = padding not in (0, "valid") and any(np.atleast_1d(padding) != 0)
    if padded:
        trace.consumed(value)
    if groups == 1:
        return _layer(trace, node, value, weight, bias, channel=1)
    ids = trace.along(trace.ids(value), 1)  # type: ignore[arg-type]
    trace.consumed(value)
    shape = node.meta["val"].shape
    if weight.parameter is None or groups != len(ids) or shape[1] != groups:
        trace.mark("fixed", ids)
        return Value(ids=trace.spread(_fixed_block(trace, weight, bias, shape[1]), shape, 1))
    return _diagonal(trace, value, weight.parameter, _name(bias), shape, 1)


def _fixed_block(trace: Trace, weight: Value, bias: Value | None, size: int) -> np.ndarray:
    ids = trace.block(size)
    trace.mark("fixed", ids)
    for item in (weight, bias):
        if item is not None and item.parameter is not None:
            trace.uses.append(Use(item.parameter, 0, "out", ids))
    return ids


def _layer(trace: Trace, node: Any, value: Value, weight: Value, bias: Value | None, channel: int) -> Value:
    ids, shape = trace.ids(value), node.meta["val"].shape
    assert ids is not None
    read = trace.along(ids, channel)
    if weight.parameter is None:  # a weight that is computed from others
        trace.mark("fixed", read)
        trace.consumed(value)
        if weight.ids is not None:
            trace.mark("fixed", weight.ids)
        return Value(ids=trace.spread(_fixed_block(trace, Value(), bias, shape[channel]), shape, channel))
    trace.uses.append(Use(weight.parameter, 1, "in", read))
    if value.norm is not None:
        if np.array_equal(trace.norms[value.norm].ids, read):
            trace.norms[value.norm].readers.append(weight.parameter)
        else:  # reads several positions, or only some channels
            trace.consumed(value)
    written = trace.block(shape[channel])
    trace.uses.append(Use(weight.parameter, 0, "out", written))
    result = trace.spread(written, shape, channel)
    if bias is not None and bias.parameter is not None:
        trace.uses.append(Use(bias.parameter, 0, "out", written))
        trace.biases[weight.parameter] = bias.parameter
    elif bias is not None and bias.ids is not None:
        trace.link(written, bias.ids)
    return Value(ids=result, writer=weight.parameter if len(node.users) == 1 else None)


def _diagonal(trace: Trace, value: Value, weight: str, bias: str | None, shape: Any, channel: int) -> Value:
    """Every channel is multiplied by a number (or a kernel) of its own, so its scale before and after are two things."""
    ids = trace.ids(value)
    read = trace.along(ids, channel)  # type: ignore[arg-type]
    trace.mark("tied", read)
    written = trace.relabel(torch.from_numpy(read)).numpy()
    axis = int(np.argmax(trace.shapes[weight]))
    trace.uses += [Use(weight, axis, "out", written), Use(weight, axis, "in", read)]
    if bias is not None:
        trace.uses.append(Use(bias, 0, "out", written))
    return Value(ids=trace.spread(written, shape, channel))


def _name(value: Value | None) -> str | None:
    return None if value is None else value.parameter


def _layer_norm(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    value, shape, weight, bias = (*args, None, None)[:4]
    ids = trace.ids(value)
    trace.consumed(value)
    if len(shape) != 1:
        return _unknown(trace, node, [value])
    trace.mark("norm", trace.along(ids, -1))  # type: ignore[arg-type]
    name = _name(weight)
    if name is None:
        return Value(ids=ids)
    if name in trace.unfoldable:
        return _diagonal(trace, Value(ids=ids), name, _name(bias), ids.shape, ids.ndim - 1)  # type: ignore[union-attr]
    channels = trace.along(ids, -1)  # type: ignore[arg-type]
    trace.norms[name] = Norm(name, _name(bias), channels)
    if bias is not None:
        # What cannot be folded into readers without a bias stays here, in the coordinates of the stream.
        trace.uses.append(Use(_name(bias), 0, "out", channels))  # type: ignore[arg-type]
    return Value(ids=ids, norm=name)


def _batch_norm(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    """Only one that could not be folded has a weight; the others are the identity by now."""
    value, weight, bias = args[:3]
    if _name(weight) is None:
        return value
    trace.consumed(value)
    return _diagonal(trace, value, _name(weight), _name(bias), node.meta["val"].shape, 1)  # type: ignore[arg-type]


# Arithmetic


def _add(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    first, second = args[:2]
    for item in (first, second):
        if _is_value(item):
            trace.consumed(item)
    if not (_is_value(first) and _is_value(second)):
        value = first if _is_value(first) else second
        return _nonlinear(trace, value)  # a number added to every channel fixes the scale
    one, two = trace.ids(first), trace.ids(second)
    if one is None or two is None:
        return _with_constant(trace, one if two is None else two, second if two is None else first)  # type: ignore[arg-type]
    one, two = torch.broadcast_tensors(one, two)
    trace.link(one, two)
    return Value(ids=torch.where(one > 0, one, two))


def _with_constant(trace: Trace, ids: torch.Tensor, other: Value) -> Value:
    ids, constant = torch.broadcast_tensors(ids, other.constant)
    if other.constant.numel() > 1:
        trace.constants.append((ids, constant))
    return Value(ids=ids)


def _mul(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    first, second = args[:2]
    if not (_is_value(first) and _is_value(second)):
        return first if _is_value(first) else second
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
    trace.link(one, two, scale=False)
    gates = np.unique(np.concatenate([*trace.marks["none"], np.zeros(0, dtype=np.int64)]))
    if np.isin(two.numpy(), gates).all():  # a gate without a scale of its own
        return Value(ids=one)
    if np.isin(one.numpy(), gates).all():
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
        return _unknown(trace, node, [value])
    if value.writer is not None and name not in trace.unfoldable:
        # LayerScale: folded into the layer before it, so it is the identity here.
        trace.scalers[name] = value.writer
        return Value(ids=ids)
    return _diagonal(trace, value, name, None, node.meta["val"].shape, ids.ndim - len(shape) + wide[0])


def _mean(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    value, axes = args[0], args[1] if len(args) > 1 else None
    keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    ids = trace.ids(value)
    if ids is None or not axes:
        return _unknown(trace, node, [value])
    kept = [axis for axis in range(ids.ndim) if axis not in {a % ids.ndim for a in axes}]
    first = ids.amax(dim=list(axes), keepdim=True)
    if not torch.equal(first.expand_as(ids), ids):
        varying = [a for a in axes if not torch.equal(ids.amax(dim=a), -(-ids).amax(dim=a))]
        if varying and kept:
            trace.link(first.expand_as(ids), ids)
    return Value(ids=first if keep else ids.amax(dim=list(axes)), norm=value.norm)


# Attention


def _attention(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    query, key, value = args[:3]
    mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
    names = []
    for item in (query, key, value):
        trace.consumed(item)
        ids = trace.ids(item)
        if ids is None or ids.ndim != 4 or ids.shape[1] != query.ids.shape[1]:
            return _unknown(trace, node, [query, key, value])
        names.append(trace.along(ids, 1, 3))
    heads = trace.block(len(names[0]))
    trace.mark("tied", heads)
    trace.attentions.append(Attention(heads, *names))
    trace.link(names[0], names[1], scale=False)
    if isinstance(mask, Value):
        ids = trace.ids(mask)
        if ids is not None:
            ids = ids.expand(torch.broadcast_shapes(ids.shape, (1, len(heads), 1, 1)))
            trace.link(heads, trace.along(ids, 1))
    shape = node.meta["val"].shape
    return Value(ids=torch.from_numpy(names[2])[None, :, None].expand(shape))


def _matmul(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    first, second = args[:2]
    one, two = trace.ids(first), trace.ids(second)
    for item in (first, second):
        trace.consumed(item)
    if one is None or two is None or one.ndim != 4 or two.ndim != 4 or one.shape[1] != two.shape[1]:
        return _unknown(trace, node, [first, second])
    shape = node.meta["val"].shape
    left, right = _varies(one, 3), _varies(two, 2)
    if left and right:  # scores: channels of queries times channels of keys
        query, key = trace.along(one, 1, 3), trace.along(two, 1, 2)
        heads = trace.block(len(query))
        trace.mark("tied", heads)
        trace.attentions.append(Attention(heads, query, key))
        trace.link(query, key, scale=False)
        return Value(ids=trace.spread(heads, shape, 1))
    if not left and not right:  # scores times values
        heads, names = trace.along(one, 1), trace.along(two, 1, 3)
        trace.attentions.append(Attention(heads, value=names))
        return Value(ids=torch.from_numpy(names)[None, :, None].expand(shape))
    return _unknown(trace, node, [first, second])


def _varies(ids: torch.Tensor, axis: int) -> bool:
    return not torch.equal(ids, ids.narrow(axis, 0, 1).expand_as(ids))


def _softmax(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    """Over positions the heads stay what they are."""
    ids = trace.ids(args[0])
    if ids is None or _varies(ids, args[1]):
        return _nonlinear(trace, args[0])
    trace.consumed(args[0])
    return replace(Value(), ids=ids)


RULES: dict[str, Rule] = {
    "linear": _linear,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "add": _add,
    "sub": _add,
    "mul": _mul,
    "div": _mul,
    "mean": _mean,
    "sum": _mean,
    "scaled_dot_product_attention": _attention,
    "matmul": _matmul,
    "bmm": _matmul,
    "softmax": _softmax,
    "_softmax": _softmax,
}
