"""From a model to the trace of its channels, through `torch.export`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..treatment import Treatment
from .rules import apply
from .tracing import Trace, Untraceable, Value


# What takes a weight, as the second of its arguments, and a bias, as the third.
LAYERS = {"linear", "conv1d", "conv2d", "conv3d"}


def trace(model: nn.Module, images: torch.Tensor, treated: Mapping[str, Treatment | None] | None = None) -> Trace:
    """
    Args:
        model (`nn.Module`):
            In evaluation mode, with BatchNorms folded; its weights are not read and may lie on the meta device.
        images (`torch.Tensor`):
            One image `[1, channels, height, width]`.
        treated (`Mapping[str, Treatment | None]`, *optional*):
            How weights are used that are not used as they are, see [`~backbones.treatments`].

    Raises:
        [`Untraceable`]: when `torch.export` cannot trace the model.
    """
    exported = _exported(model, images)
    unfoldable: frozenset[str] = frozenset()
    while True:
        result = Trace(unfoldable, treated)
        _run(result, exported)
        if result.unfoldable == unfoldable:
            return result
        # Which normalisations can be folded shows only at the end, and changes what lies behind them.
        unfoldable = frozenset(result.unfoldable)


def _exported(model: nn.Module, images: torch.Tensor) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(model, (images,), strict=False)
    except Exception as error:
        raise Untraceable(
            f"torch.export cannot trace {type(model).__name__}: {str(error).splitlines()[0][:300]}"
        ) from error


def _run(trace: Trace, exported: torch.export.ExportedProgram) -> None:
    """Every node in order."""
    signature = exported.graph_signature
    parameters, inputs = dict(signature.inputs_to_parameters), set(signature.user_inputs)
    constants = {**exported.constants, **dict(exported.named_buffers())}
    buffers = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    values: dict[Any, Any] = {}
    for node, computed in _computed_weights(exported.graph, parameters, buffers).items():
        values[node] = Value(computed=computed)
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            values[node] = _placeholder(trace, node, parameters, inputs, buffers, constants)
    for item in torch.utils._pytree.tree_leaves(_outputs(trace, exported.graph_module, values)):
        if isinstance(item, Value) and item.ids is not None:
            trace.mark("fixed", item.ids)
            trace.consumed(item)


def _outputs(trace: Trace, module: torch.fx.GraphModule, values: dict[Any, Any]) -> Any:
    """What a graph returns, once the values of its placeholders are known."""
    for node in module.graph.nodes:
        if node in values:
            continue
        if node.op == "get_attr":
            values[node] = getattr(module, node.target)
            continue
        args, kwargs = (torch.fx.node.map_arg(part, values.__getitem__) for part in (node.args, node.kwargs))
        if node.op == "output":
            return args[0]
        inner = next((place for place, item in enumerate(args) if isinstance(item, torch.fx.GraphModule)), None)
        if inner is None:
            values[node] = apply(trace, node, args, kwargs)
            continue
        # A part under its own precision or without gradients is a graph in the graph. Who reads a value there is not known here.
        given = zip(args[inner].graph.find_nodes(op="placeholder"), args[inner + 1 :], strict=True)
        found = _outputs(trace, args[inner], {name: _shared(item) for name, item in given})
        values[node] = [_shared(item) for item in found] if isinstance(found, list | tuple) else _shared(found)
    return None


def _shared(value: Any) -> Any:
    return replace(value, writer=None) if isinstance(value, Value) else value


def _computed_weights(graph: torch.fx.Graph, parameters: dict, buffers: dict) -> dict[Any, tuple[str, ...]]:
    """Operations on parameters alone whose results are weights of layers and nothing else, with the names of these parameters."""
    sources: dict[Any, set[str] | None] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            sources[node] = {parameters[node.name]} if node.name in parameters else set()
            if node.name not in parameters and node.name not in buffers:
                sources[node] = None
        elif node.op == "call_function":
            given = [sources.get(item) for item in node.all_input_nodes]
            sources[node] = None if None in given else set().union(*given)  # type: ignore[arg-type]
    found: dict[Any, tuple[str, ...]] = {}
    for node in reversed(graph.nodes):
        names = sources.get(node)
        if (
            node.op == "call_function"
            and names
            and all(user in found or _as_weight(node, user) for user in node.users)
        ):
            found[node] = tuple(sorted(names))
    return found


def _as_weight(node: Any, user: Any) -> bool:
    name = getattr(user.target, "_opname", "")
    return name in LAYERS and node is not user.args[0] and node in user.args[1:3]


def _placeholder(trace: Trace, node: Any, parameters: dict, inputs: set, buffers: dict, constants: dict) -> Value:
    if node.name in parameters:
        name = parameters[node.name]
        trace.shapes[name] = tuple(node.meta["val"].shape)
        return Value(parameter=name)
    if node.name in inputs:
        return Value(ids=torch.zeros(node.meta["val"].shape, dtype=torch.int64))
    name = buffers.get(node.name)
    known = None if name is None else constants.get(name)
    if known is None or known.is_meta:  # a model without numbers: no index of its tables may lie outside of them
        known = torch.zeros(node.meta["val"].shape, dtype=node.meta["val"].dtype)
    return Value(constant=known)
