"""Through an ONNX file and back: what exporters and onnxruntime's quantiser leave of the weights."""

import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from .base import Attack, NotApplicableError
from .batchnorm import conv_batchnorm_pairs, sample_input


PREFIX = "classifier."


@dataclass
class OnnxRoundTrip(Attack):
    """
    Export the model with `torch.onnx`, whose optimiser folds each BatchNorm into the convolution before it, and read the
    file's tensors back into the architecture: convolutions hold the folded weights, their BatchNorms only add the folded
    bias. Answers stay equal up to rounding, and the attack compares them with those of onnxruntime. Needs `onnxscript` and
    `onnxruntime` (extra `attacks`).

    Args:
        weights (`str`, *optional*, defaults to `"float32"`):
            `"float32"`, or `"int8"`: quantised with `onnxruntime.quantization.quantize_dynamic`, one scale per output channel
            where it supports that; a linear head stays as it is. Read back, the weights are quantised and activations are not.
    """

    name: ClassVar[str] = "onnx_round_trip"

    weights: Literal["float32", "int8"] = "float32"

    def __post_init__(self) -> None:
        self._check(self.weights in ("float32", "int8"), "weights", "choose 'float32' or 'int8'")

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        try:
            import onnxruntime
            import onnxscript  # noqa: F401  (torch.onnx needs it)
        except ImportError as error:
            raise ImportError(
                f"OnnxRoundTrip: {error.name} is not installed; run `pip install hf-watermark[attacks]`."
            ) from None
        model = model.eval().cpu()
        sample = sample_input(model, data)
        with tempfile.TemporaryDirectory() as folder:
            file = export(model, sample, Path(folder) / "model.onnx")
            float_tensors, places = read_graph(file, model)
            tensors = read_quantised(file) if self.weights == "int8" else float_tensors
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            (answer,) = session.run(None, {session.get_inputs()[0].name: sample.numpy()})
        install(model, conv_batchnorm_pairs(model, sample), places, float_tensors)
        with torch.no_grad():
            difference = (model(pixel_values=sample).logits - torch.from_numpy(answer)).abs().max()
        if not difference <= 1e-3 * (1 + abs(answer).max()):
            raise NotApplicableError(
                f"The ONNX graph of {type(model).__name__} cannot be read back: answers differ by {difference:.2g}."
            )
        if self.weights == "int8":
            install(model, [], places, tensors)  # the biases are in place and are not quantised
        return model


class _Logits(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.classifier = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.classifier(pixel_values=pixel_values).logits


def export(model: PreTrainedModel, sample: torch.Tensor, file: Path) -> Path:
    """Write the model as ONNX for inputs of the shape of `sample`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)  # the exporter writes about each step
        try:
            torch.onnx.export(_Logits(model).eval(), (sample,), file, dynamo=True, external_data=False, verbose=False)
        except Exception as error:  # whatever the exporter meets in a graph
            if isinstance(error, KeyboardInterrupt | MemoryError):
                raise
            raise NotApplicableError(f"{type(model).__name__} cannot be exported to ONNX: {error}") from error
        finally:
            logging.disable(level)
    return file


Place = tuple[str, str]
"""Name of a parameter, and `""` as it is, `"transposed"`, or `"shift"` for the bias of a convolution without one."""


def read_graph(file: Path, model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], dict[str, list[Place]]]:
    """
    The file's floating-point tensors by name, and the parameters of `model` that each belongs to. Names of parameters are
    kept by the exporter, but for transposed weights, which are found by value, and for new biases of folded convolutions.
    """
    import onnx

    graph = onnx.load(file).graph
    tensors = {
        item.name: torch.from_numpy(onnx.numpy_helper.to_array(item).copy())
        for item in graph.initializer
        if item.data_type == onnx.TensorProto.FLOAT
    }
    state = model.state_dict()
    own = {name: name.removeprefix(PREFIX) for name in tensors if name.startswith(PREFIX)}
    places: dict[str, list[Place]] = {name: [(parameter, "")] for name, parameter in own.items() if parameter in state}
    matrices = {name: tensor for name, tensor in state.items() if tensor.dim() == 2 and PREFIX + name not in tensors}
    for node in graph.node:
        if node.op_type == "Conv" and node.input[1] in own:
            layer = own[node.input[1]].removesuffix(".weight")
            if len(node.input) > 2 and own.get(node.input[2]) != f"{layer}.bias":
                place = (f"{layer}.bias", "") if f"{layer}.bias" in state else (layer, "shift")
                places.setdefault(node.input[2], []).append(place)
        if node.op_type == "MatMul" and node.input[1] in tensors and node.input[1] not in own:
            constant = tensors[node.input[1]]
            places[node.input[1]] = [
                (name, "transposed")
                for name, matrix in matrices.items()
                if matrix.shape == constant.T.shape and torch.equal(matrix, constant.T)
            ]
    return tensors, places


def read_quantised(file: Path) -> dict[str, torch.Tensor]:
    """The tensors after dynamic quantisation, as floating-point values under their former names."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = file.with_name("int8.onnx")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # onnxruntime advises its own preprocessing, which the exporter has done
    try:
        quantize_dynamic(file, target, per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logging.disable(level)
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(target).graph.initializer}
    tensors = {}
    for name, levels in stored.items():
        if name.endswith("_quantized"):
            former = name.removesuffix("_quantized")
            scale, zero = (
                torch.from_numpy(stored[f"{former}_{part}"].copy()).float() for part in ("scale", "zero_point")
            )
            whole = torch.from_numpy(levels.copy()).float()
            if (
                scale.numel() > 1
            ):  # per channel: the axis whose length fits, columns of a MatMul, rows of a convolution
                axis = whole.dim() - 1 if whole.dim() == 2 and whole.shape[1] == scale.numel() else 0
                shape = [-1 if place == axis else 1 for place in range(whole.dim())]
                scale, zero = scale.view(shape), zero.view(shape)
            tensors[former] = (whole - zero) * scale
    return tensors


@torch.no_grad()
def install(
    model: PreTrainedModel,
    folded: list[tuple[nn.Conv2d, nn.BatchNorm2d]],
    places: dict[str, list[Place]],
    tensors: dict[str, torch.Tensor],
) -> None:
    """Copy tensors to their places in `model`; BatchNorms of `folded` pairs become additions of the file's bias."""
    convolutions = {id(conv): norm for conv, norm in folded}
    modules = dict(model.named_modules())
    state = model.state_dict()
    for norm in convolutions.values():
        norm.running_mean.zero_()  # type: ignore[union-attr]
        norm.running_var.fill_(1 - norm.eps)  # type: ignore[union-attr]
        norm.weight.fill_(1)
        norm.bias.zero_()
    for name, found in places.items():
        for parameter, kind in found if name in tensors else []:
            if kind != "shift":
                state[parameter].copy_(tensors[name].T if kind == "transposed" else tensors[name])
            elif id(modules[parameter]) in convolutions:
                convolutions[id(modules[parameter])].bias.copy_(tensors[name])
