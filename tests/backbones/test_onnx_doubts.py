"""Graphs that compute with other weights than those that can be read in them, and ordinary ones that look a little like them."""

import numpy as np
import pytest


pytest.importorskip("onnx")
import onnx
from onnx import helper

from hf_watermark.backbones.containers.onnx_doubts import doubt_of
from hf_watermark.suspects.stored import as_meant, files_at


WIDE, NODE = 16, helper.make_node


def graph(*nodes, **stored):
    """Nodes from `x` to `y` with what they multiply by, `W` a matrix that reads what they make."""
    items = {"W": (12, WIDE), "P": (WIDE, WIDE), "v": (WIDE,), "one": ()} | stored
    held = [onnx.numpy_helper.from_array(np.ones(shape, "float32"), name) for name, shape in items.items()]
    held += [
        onnx.numpy_helper.from_array(np.arange(WIDE)[::-1].copy(), "order"),
        onnx.numpy_helper.from_array(np.array(0), "first"),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    return helper.make_graph(list(nodes), "net", ends[:1], ends[1:], held)


READS = NODE("Gemm", ["h", "W"], ["y"], transB=1)
DRESSED = {
    "reordered": [NODE("Gather", ["x", "order"], ["h"], axis=1), READS],
    "scaled": [NODE("Mul", ["x", "v"], ["h"]), READS],
    "scaled behind a sum": [NODE("Mul", ["v", "x"], ["a"]), NODE("Add", ["a", "v"], ["h"]), READS],
    "mixed": [NODE("MatMul", ["x", "P"], ["h"]), READS],
    "mixed, with a bias": [NODE("Gemm", ["x", "P", "v"], ["a"]), NODE("Cast", ["a"], ["h"], to=1), READS],
    "product of two constants": [NODE("MatMul", ["W", "P"], ["w"]), NODE("Gemm", ["x", "w"], ["y"], transB=1)],
    "negated": [NODE("Neg", ["W"], ["w"]), NODE("Gemm", ["x", "w"], ["y"], transB=1)],
}
ORDINARY = {
    "a layer": [NODE("Relu", ["x"], ["h"]), READS],
    "its matrix turned": [NODE("Transpose", ["W"], ["w"], perm=[1, 0]), NODE("MatMul", ["x", "w"], ["y"])],
    "a normalisation": [NODE("Div", ["x", "x"], ["a"]), NODE("Mul", ["a", "v"], ["b"]), NODE("Add", ["b", "v"], ["h"]), READS],
    "a root mean square": [
        NODE("Reciprocal", ["x"], ["a"]),
        NODE("Mul", ["x", "a"], ["b"]),
        NODE("Mul", ["b", "v"], ["h"]),
        READS,
    ],
    "a factor for all": [NODE("Mul", ["x", "one"], ["h"]), READS],
    "the first token": [NODE("Gather", ["x", "first"], ["h"], axis=1), READS],
    "a narrow layer before": [NODE("Gemm", ["x", "N"], ["a"], transB=1), NODE("Gemm", ["a", "M"], ["y"], transB=1)],
}  # fmt: skip


@pytest.mark.parametrize("name", [*DRESSED, *ORDINARY])
def test_what_stands_before_a_weight(name, tmp_path):
    found = graph(*(DRESSED | ORDINARY)[name], N=(9, WIDE), M=(WIDE, 9))
    assert bool(doubt_of(found)) == (name in DRESSED), doubt_of(found)
    onnx.save(helper.make_model(found), tmp_path / "model.onnx")
    assert as_meant(files_at(tmp_path)).doubt == doubt_of(found)
