"""
What an ONNX graph computes with beside the weights that were read: weights that it puts together itself, and layers that change what a layer is given
and whose inverse may be folded into its weight. No training puts them there, and behind them a weight that was read says nothing.
"""

from collections.abc import Iterator
from typing import Any

from ...serialization import shown


LAYERS = ("Conv", "MatMul", "Gemm", "ConvTranspose")
# What a stored weight may go through on its way into a layer and still be the one that was read.
AS_STORED = ("Identity", "Cast", "Transpose", "DequantizeLinear", "QuantizeLinear")
# What leaves the numbers of an activation as they are, or moves each on by a constant.
PASSING = (*AS_STORED, "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout", "Add", "Sub")
NORMALISING = ("Div", "Reciprocal", "Sqrt", "Rsqrt", "Pow", "LayerNormalization", "SimplifiedLayerNormalization")
# Fewer numbers are those of colours, or of a choice among a few.
FEW = 8
MOST_STEPS = 12


def doubt_of(graph: Any) -> str:
    """Why the weights that were read may not be those that the graph computes with; empty where nothing says so."""
    return next(_Wiring(graph).doubts(), "")


class _Wiring:
    """Who makes what, which values are constant, and how many numbers the stored ones have."""

    def __init__(self, graph: Any):
        self.graph = graph
        self.shapes = {item.name: tuple(item.dims) for item in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.constant = set(self.shapes)
        for node in graph.node:  # in the order in which they are computed
            if all(name in self.constant for name in node.input if name):
                self.constant.update(node.output)

    def doubts(self) -> Iterator[str]:
        for node in self.graph.node:
            given = list(node.input)
            if (
                node.op_type not in LAYERS
                or len(given) < 2
                or given[0] in self.constant
                or given[1] not in self.constant
            ):
                continue
            if not self._stored(given[1]):
                yield f"the graph computes the weight of {self._called(node)} from constants; give the model that it was exported from"
            if before := self._before(given[0]):
                yield (
                    f"{self._called(before)} ({before.op_type}) changes what {self._called(node)} is given, which its weight may undo; give the model that it was "
                    "exported from"
                )

    def _stored(self, name: str) -> str:
        """The stored constant that a weight is, through what does not change its numbers."""
        for _ in range(MOST_STEPS):
            if name in self.shapes:
                return name
            node = self.makers.get(name)
            if node is None or node.op_type not in AS_STORED or not node.input:
                break
            name = node.input[0]
        return ""

    def _before(self, name: str) -> Any:
        """The node that reorders, scales or mixes an activation by constants, right before a layer that multiplies with others."""
        for _ in range(MOST_STEPS):
            node = self.makers.get(name)
            if node is None:
                return None
            moving = [item for item in node.input if item and item not in self.constant]
            fixed = [self.shapes.get(item, ()) for item in node.input if item in self.constant]
            if node.op_type == "Gather":
                return node if len(node.input) > 1 and list(node.input[:1]) == moving and _many(fixed) else None
            if node.op_type in ("Mul", "Div"):
                return (
                    node if fixed and _many(fixed) and len(moving) == 1 and not self._normalised(moving[0]) else None
                )
            if node.op_type in LAYERS:
                return node if fixed and self._keeps_all(node) else None
            if node.op_type not in PASSING or len(moving) != 1:
                return None
            name = moving[0]
        return None

    def _normalised(self, name: str) -> bool:
        """Whether a value was divided by what was computed from it, as in the normalisations: then its scales are theirs."""
        node = self.makers.get(name)
        if node is not None and node.op_type == "Cast":
            node = self.makers.get(node.input[0])
        if node is None or node.op_type in NORMALISING:
            return node is not None
        factors = [self.makers.get(item) for item in node.input] if node.op_type == "Mul" else []
        return any(factor is not None and factor.op_type in NORMALISING for factor in factors)

    def _keeps_all(self, node: Any) -> bool:
        """Whether a layer mixes channels at one place and gives no fewer than it takes, so that another one can undo it."""
        shape = self.shapes.get(self._stored(node.input[1]), ())
        if node.op_type in ("Conv", "ConvTranspose"):
            return len(shape) > 2 and all(size == 1 for size in shape[2:]) and shape[0] >= shape[1] and shape[0] >= FEW
        across = node.op_type == "MatMul" or not any(item.name == "transB" and item.i for item in node.attribute)
        return len(shape) == 2 and shape[across] >= shape[not across] and shape[0] >= FEW

    def _called(self, node: Any) -> str:
        return shown(node.name or next(iter(node.output), ""))


def _many(shapes: list[tuple[int, ...]]) -> bool:
    return any(max(shape, default=1) >= FEW for shape in shapes)
