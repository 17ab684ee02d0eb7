"""From a model to the trace of its channels, through `torch.export`."""

from typing import Any

import torch
from torch import nn

from .rules import apply
from .tracing import Trace, Untraceable, Value


def trace(model: nn.Module, images: torch.Tensor) -> Trace:
    """
    Args:
        model (`nn.Module`):
            In evaluation mode, with BatchNorms folded; its weights are not read and may lie on the meta device.
        images (`torch.Tensor`):
            One image `[1, channels, height, width]`.

    Raises:
        [`Untraceable`]: when `torch.export` cannot trace the model.
    """
    try:
        exported = torch.export.export(model, (images,), strict=False)
    except Exception as error:
        raise Untraceable(
            f"torch.export cannot trace {type(model).__name__}: {str(error).splitlines()[0][:300]}"
        ) from error
    unfoldable: frozenset[str] = frozenset()
    while True:
        result = Trace(unfoldable)
        _run(result, exported)
        if result.unfoldable == unfoldable:
            return result
        # Which normalisations can be folded shows only at the end, and changes what lies behind them.
        unfoldable = frozenset(result.unfoldable)


def _run(trace: Trace, exported: torch.export.ExportedProgram) -> None:
    """Every node in order."""
    signature = exported.graph_signature
    parameters, inputs = dict(signature.inputs_to_parameters), set(signature.user_inputs)
    constants = {**exported.constants, **dict(exported.named_buffers())}
    buffers = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    values: dict[str, Any] = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            values[node.name] = _placeholder(trace, node, parameters, inputs, buffers, constants)
        elif node.op == "call_function":
            args, kwargs = (torch.fx.node.map_arg(part, lambda n: values[n.name]) for part in (node.args, node.kwargs))
            values[node.name] = apply(trace, node, args, kwargs)
        elif node.op == "output":
            for item in torch.utils._pytree.tree_leaves(node.args):
                found = values.get(str(getattr(item, "name", "")))
                if isinstance(found, Value) and found.ids is not None:
                    trace.mark("fixed", found.ids)
                    trace.consumed(found)


def _placeholder(trace: Trace, node: Any, parameters: dict, inputs: set, buffers: dict, constants: dict) -> Value:
    if node.name in parameters:
        name = parameters[node.name]
        trace.shapes[name] = tuple(node.meta["val"].shape)
        return Value(parameter=name)
    if node.name in inputs:
        return Value(ids=torch.zeros(node.meta["val"].shape, dtype=torch.int64))
    name = buffers.get(node.name)
    known = None if name is None else constants.get(name)
    return Value(constant=known if known is not None else torch.zeros(node.meta["val"].shape))
