"""Storage with fewer bits. The result is an ordinary floating-point model, so that any verifier can read it."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_torchao_available

from .base import Attack, classifier_head, weight_layers


DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def quantize_rows(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Symmetric uniform quantisation with one scale per output channel.

    Args:
        weight (`torch.Tensor`):
            Shape (out, ...).
        bits (`int`):
            2 to 16.

    Returns:
        Whole numbers from `-(2**(bits-1) - 1)` to `2**(bits-1) - 1` of the shape and dtype of `weight`, and scales of
        shape (out, 1, ...) by which to multiply them. A channel of zeros stays zero.
    """
    limit = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True) / limit
    return (weight / scale.where(scale > 0, 1)).round().clamp(-limit, limit), scale


@dataclass
class UniformQuantize(Attack):
    """
    Round each convolution and linear weight (head included) to `2**bits - 1` evenly spaced levels per output channel.

    Args:
        bits (`int`, *optional*, defaults to 4):
            2 to 16.
    """

    name: ClassVar[str] = "uniform_quantize"

    bits: int = 4

    def __post_init__(self) -> None:
        self._check(self.bits in range(2, 17), "bits", "give a whole number from 2 to 16")

    @torch.no_grad()
    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        for layer in weight_layers(model).values():
            levels, scale = quantize_rows(layer.weight, self.bits)
            layer.weight.copy_(levels * scale)
        return model


@dataclass
class Int8Quantize(Attack):
    """
    Store each convolution and linear weight (head included) as int8 with one scale per output channel, and read it back.

    Args:
        backend (`str`, *optional*, defaults to `"auto"`):
            `"torchao"` for its weight-only int8 storage, `"torch"` for int8 tensors of torch, `"auto"` for torchao
            where it is installed. torchao uses the level -128, torch's symmetric scheme does not: the two differ by
            less than one step.
    """

    name: ClassVar[str] = "int8_quantize"

    backend: Literal["auto", "torchao", "torch"] = "auto"

    def __post_init__(self) -> None:
        self._check(self.backend in ("auto", "torchao", "torch"), "backend", "choose 'auto', 'torchao' or 'torch'")

    @torch.no_grad()
    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        if self.backend == "torchao" and not is_torchao_available():
            raise ImportError("Int8Quantize: backend='torchao' is not installed; run `pip install torchao`.")
        through_int8 = _torch_int8 if self.backend == "torch" or not is_torchao_available() else _torchao_int8
        for layer in weight_layers(model).values():
            layer.weight.copy_(through_int8(layer.weight))
        return model


def _torch_int8(weight: torch.Tensor) -> torch.Tensor:
    levels, scale = quantize_rows(weight, bits=8)
    stored = levels.to(torch.int8)
    return stored.to(weight.dtype) * scale


def _torchao_int8(weight: torch.Tensor) -> torch.Tensor:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    # torchao 0.18 stores convolution weights as int8 too, but cannot run them, and gives each kernel column a scale of
    # its own. As the matrix (out, in * height * width) of a linear layer they get one scale per output channel.
    matrix = weight.flatten(1)
    carrier = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
    carrier.weight.copy_(matrix)
    quantize_(carrier, Int8WeightOnlyConfig())
    return carrier.weight.dequantize().view_as(weight)


@dataclass
class Int4Quantize(Attack):
    """
    Store each convolution and linear weight but the head's as 4-bit integers with one scale per group of inputs, as torchao's
    weight-only scheme does, and read it back. Needs `torchao` (extra `attacks`).

    Args:
        group_size (`int`, *optional*, defaults to 32):
            Weights that share a scale: consecutive ones of a row. The last group of a row may hold fewer.
    """

    name: ClassVar[str] = "int4_quantize"

    group_size: int = 32

    def __post_init__(self) -> None:
        whole = isinstance(self.group_size, int) and self.group_size >= 2
        self._check(whole, "group_size", "give a whole number of at least 2")

    @torch.no_grad()
    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        if not is_torchao_available():
            raise ImportError("Int4Quantize: torchao is not installed; run `pip install hf-watermark[attacks]`.")
        head = classifier_head(model)
        for layer in weight_layers(model).values():
            if layer is not head:
                layer.weight.copy_(self._through_int4(layer.weight))
        return model

    def _through_int4(self, weight: torch.Tensor) -> torch.Tensor:
        from torchao.quantization import IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerGroup

        matrix = weight.flatten(1)
        rows, columns = matrix.shape
        missing = -columns % self.group_size
        carrier = nn.Linear(columns + missing, rows, bias=False, device=weight.device, dtype=weight.dtype)
        carrier.weight.copy_(nn.functional.pad(matrix, (0, missing)))  # zeros change no scale
        int4: Any = torch.int4  # type: ignore[attr-defined]
        quantize_(carrier, IntxWeightOnlyConfig(weight_dtype=int4, granularity=PerGroup(self.group_size)))
        return carrier.weight.dequantize()[:, :columns].reshape(weight.shape)


@dataclass
class CastDtype(Attack):
    """
    Cast parameters and floating-point buffers to half precision and back, as saving and loading such a copy does.

    Args:
        dtype (`str`, *optional*, defaults to `"bfloat16"`):
            `"bfloat16"` or `"float16"`. The copy is returned in the dtype of the model, so that it runs anywhere.
    """

    name: ClassVar[str] = "cast_dtype"

    dtype: Literal["bfloat16", "float16"] = "bfloat16"

    def __post_init__(self) -> None:
        self._check(self.dtype in DTYPES, "dtype", "choose 'bfloat16' or 'float16'")

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        original = model.dtype
        return model.to(DTYPES[self.dtype]).to(original)  # type: ignore[arg-type]
