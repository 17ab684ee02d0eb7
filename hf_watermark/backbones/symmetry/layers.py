"""Rules of layers and of attention: what reads channels, and what writes new ones."""

from typing import Any

import numpy as np
import torch

from .tracing import Attention, Norm, Trace, Use, Value, thinned


def linear(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    value, weight, bias = (*args, None)[:3]
    return _layer(trace, node, value, weight, bias, channel=-1)


def convolution(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    value, weight, bias, _, padding, _, groups = (*args, *[None, 1, 0, 1, 1][len(args) - 2 :])[:7]
    padded = padding not in (0, "valid") and any(np.atleast_1d(padding) != 0)
    if padded:
        trace.consumed(value)
    if groups == 1:
        return _layer(trace, node, value, weight, bias, channel=1)
    ids = trace.along(trace.activation(value), 1)
    trace.consumed(value)
    shape = node.meta["val"].shape
    if weight.parameter is None or groups != len(ids) or shape[1] != groups:
        trace.mark("fixed", ids)
        return Value(ids=trace.spread(_fixed_block(trace, weight, bias, shape[1]), shape, 1))
    return diagonal(trace, value, weight.parameter, _name(bias), shape, 1)


def _fixed_block(trace: Trace, weight: Value, bias: Value | None, size: int) -> np.ndarray:
    ids = trace.block(size)
    trace.mark("fixed", ids)
    for item in (weight, bias):
        if item is not None and item.parameter is not None:
            trace.uses.append(Use(item.parameter, 0, "out", ids))
    return ids


def _layer(trace: Trace, node: Any, value: Value, weight: Value, bias: Value | None, channel: int) -> Value:
    ids, shape = trace.activation(value), node.meta["val"].shape
    read = np.maximum(trace.along(ids, channel), 0)
    name = weight.parameter or trace.stands_for(weight, node.args[1].meta["val"].shape)
    if name is None:  # a weight that is computed from others
        trace.mark("fixed", read)
        trace.consumed(value)
        if weight.ids is not None:
            trace.mark("fixed", weight.ids)
        return Value(ids=trace.spread(_fixed_block(trace, Value(), bias, shape[channel]), shape, channel))
    trace.uses.append(Use(name, 1, "in", read))
    if weight.computed:
        trace.consumed(value)
        trace.mark("none", read)
    elif value.norm is not None:
        if np.array_equal(trace.norms[value.norm].ids, read):
            trace.norms[value.norm].readers.append(name)
        else:  # reads several positions, or only some channels
            trace.consumed(value)
    written = trace.block(shape[channel])
    trace.positions[name] = int(np.prod(shape)) // shape[channel]
    trace.uses.append(Use(name, 0, "out", written))
    if weight.computed:
        trace.mark("none", written)
        scale = trace.treated[name].scale
        if scale is not None:
            trace.uses.append(Use(scale, int(np.argmax(trace.shapes[scale])), "out", written))
    result = trace.spread(written, shape, channel)
    if bias is not None and bias.parameter is not None:
        trace.uses.append(Use(bias.parameter, 0, "out", written))
        trace.biases[name] = bias.parameter
    elif bias is not None and bias.ids is not None:
        trace.link(written, bias.ids)
    folds = len(node.users) == 1 and not weight.computed
    return Value(ids=result, writer=name if folds else None)


def diagonal(trace: Trace, value: Value, weight: str, bias: str | None, shape: Any, channel: int) -> Value:
    """Every channel is multiplied by a number (or a kernel) of its own, so its scale before and after are two things."""
    read = np.maximum(trace.along(trace.activation(value), channel), 0)
    trace.mark("tied", read)
    written = trace.relabel(torch.from_numpy(read)).numpy()
    axis = int(np.argmax(trace.shapes[weight]))
    trace.uses += [Use(weight, axis, "out", written), Use(weight, axis, "in", read)]
    if bias is not None:
        trace.uses.append(Use(bias, 0, "out", written))
    return Value(ids=trace.spread(written, shape, channel))


def _name(value: Value | None) -> str | None:
    return None if value is None else value.parameter


def layer_norm(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    value, shape, weight, bias = (*args, None, None)[:4]
    ids = trace.activation(value)
    trace.consumed(value)
    if len(shape) != 1:
        return trace.unknown(node, [value])
    trace.mark("norm", trace.along(ids, -1))
    name = _name(weight)
    if name is None:
        return Value(ids=ids)
    if name in trace.unfoldable:
        return diagonal(trace, Value(ids=ids), name, _name(bias), ids.shape, ids.ndim - 1)
    channels = np.maximum(trace.along(ids, -1), 0)
    trace.norms[name] = Norm(name, _name(bias), channels)
    if bias is not None:
        # What cannot be folded into readers without a bias stays here, in the coordinates of the stream.
        trace.uses.append(Use(_name(bias), 0, "out", channels))  # type: ignore[arg-type]
    return Value(ids=ids, norm=name)


def batch_norm(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    """Only one that could not be folded has a weight; the others are the identity by now."""
    value, weight, bias = args[:3]
    if _name(weight) is None:
        return value
    trace.consumed(value)
    return diagonal(trace, value, _name(weight), _name(bias), node.meta["val"].shape, 1)  # type: ignore[arg-type]


# Attention


def attention(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    query, key, value = args[:3]
    mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
    names = []
    for item in (query, key, value):
        trace.consumed(item)
        ids = trace.ids(item)
        if ids is None or ids.ndim != 4 or ids.shape[1] != query.ids.shape[1] or (thinned(ids)[0] <= 0).any():
            return trace.unknown(node, [query, key, value])
        names.append(trace.along(ids, 1, 3))
    heads = trace.block(len(names[0]))
    trace.mark("tied", heads)
    trace.attentions.append(Attention(heads, *names))
    trace.link(names[0], names[1], scale=False, product=True)
    if isinstance(mask, Value):
        ids = trace.ids(mask)
        if ids is not None:
            ids = ids.expand(torch.broadcast_shapes(ids.shape, (1, len(heads), 1, 1)))
            trace.link(heads, trace.along(ids, 1))
    shape = node.meta["val"].shape
    return Value(ids=torch.from_numpy(names[2])[None, :, None].expand(shape))


def matmul(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    first, second = args[:2]
    one, two = trace.ids(first), trace.ids(second)
    for item in (first, second):
        trace.consumed(item)
    if one is None or two is None or one.ndim != 4 or two.ndim != 4 or one.shape[1] != two.shape[1]:
        return trace.unknown(node, [first, second])
    if any((thinned(item)[0] <= 0).any() for item in (one, two)):
        return trace.unknown(node, [first, second])
    shape = node.meta["val"].shape
    left, right = _varies(one, 3), _varies(two, 2)
    if left and right:  # scores: channels of queries times channels of keys
        query, key = trace.along(one, 1, 3), trace.along(two, 1, 2)
        heads = trace.block(len(query))
        trace.mark("tied", heads)
        trace.attentions.append(Attention(heads, query, key))
        trace.link(query, key, scale=False, product=True)
        return Value(ids=trace.spread(heads, shape, 1))
    if not left and not right:  # scores times values
        heads, names = trace.along(one, 1), trace.along(two, 1, 3)
        trace.attentions.append(Attention(heads, value=names))
        return Value(ids=torch.from_numpy(names)[None, :, None].expand(shape))
    return trace.unknown(node, [first, second])


def _varies(ids: torch.Tensor, axis: int) -> bool:
    [thin] = thinned(ids)
    return not torch.equal(thin, thin.narrow(axis, 0, 1).expand_as(thin))


def softmax(trace: Trace, node: Any, args: tuple, kwargs: dict) -> Value:
    """Over positions the heads stay what they are."""
    ids = trace.ids(args[0])
    if ids is None or _varies(ids, args[1]):
        return trace.nonlinear(args[0])
    trace.consumed(args[0])
    return Value(ids=ids)
