"""
A model's tensors as other libraries store them. Own writers follow the library's layout bit for bit; where the library runs on a CPU, the tests
compare with it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


State = dict[str, torch.Tensor]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def weights(state: State, linear: bool) -> list[str]:
    """Those that a quantiser takes: linear layers, or convolutions too; the head stays as it is."""
    names = [
        name for name, tensor in state.items() if tensor.ndim in ((2,) if linear else (2, 4)) and tensor.numel() >= 512
    ]
    return [name for name in names if "classifier" not in name and "position" not in name]


def each(state: State, store: Callable[[str, torch.Tensor], State], linear: bool = False) -> State:
    """Every weight stored by `store`, the rest as it is."""
    taken = weights(state, linear)
    files = {name: tensor for name, tensor in state.items() if name not in taken}
    for name in taken:
        files |= store(name, state[name])
    return files


def to_codes(
    matrix: torch.Tensor, bits: int, group: int | None, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes `[rows, columns]` from 0 to 2^bits - 1, scales and zero points `[rows, groups]`."""
    rows, columns = matrix.shape
    group = group or columns
    groups = matrix.reshape(rows, columns // group, group)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if symmetric:
        scale = torch.maximum(high, -low) / (2 ** (bits - 1) - 0.5)
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        scale = (high - low) / (2**bits - 1)
        zero = (-low / scale).round().clamp(1, 2**bits - 1)
    codes = (groups / scale[..., None] + zero[..., None]).round().clamp(0, 2**bits - 1)
    return codes.reshape(rows, columns).long(), scale, zero.long()


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """`[rows, n]` codes end to end in int32."""
    rows, count = codes.shape
    words = torch.zeros(rows, -(-count * bits // 32) + 1, dtype=torch.int64)
    for place in range(count):
        word, shift = divmod(place * bits, 32)
        words[:, word] |= (codes[:, place] << shift) & 0xFFFFFFFF
        words[:, word + 1] |= codes[:, place] >> (32 - shift)
    return (
        (words[:, :-1] & 0xFFFFFFFF)
        .sub(2**32, alpha=1)
        .where(words[:, :-1] >= 2**31, words[:, :-1])
        .to(torch.int32)
        .contiguous()
    )


def gptq(
    state: State, bits: int = 4, group: int = 32, symmetric: bool = True, ordered: bool = False, version: int = 1
) -> State:
    def store(name: str, weight: torch.Tensor) -> State:
        module, columns = name.removesuffix(".weight"), weight.shape[1]
        order = (
            torch.randperm(columns, generator=torch.Generator().manual_seed(0)) if ordered else torch.arange(columns)
        )
        codes, scale, zero = to_codes(weight[:, order], bits, group, symmetric)
        back = order.argsort()
        zeros = zero.T - 1 if version == 1 else zero.T
        return {
            f"{module}.qweight": pack(codes[:, back], bits).T.contiguous(),
            f"{module}.qzeros": pack(zeros.contiguous(), bits),
            f"{module}.scales": scale.T.contiguous().half(),
            f"{module}.g_idx": (torch.arange(columns) // group)[back].int(),
        }

    return each(state, store, linear=True)


def awq(state: State, group: int = 32) -> State:
    def in_order(codes: torch.Tensor) -> torch.Tensor:
        return pack(codes.reshape(len(codes), -1, 8)[..., list(AWQ_ORDER)].reshape(codes.shape), 4)

    def store(name: str, weight: torch.Tensor) -> State:
        module, (codes, scale, zero) = name.removesuffix(".weight"), to_codes(weight, 4, group, symmetric=False)
        parts = {"qweight": in_order(codes.T.contiguous()), "qzeros": in_order(zero.T.contiguous())}
        return {f"{module}.{part}": tensor for part, tensor in parts.items()} | {
            f"{module}.scales": scale.T.contiguous().half()
        }

    return each(state, store, linear=True)


def packed_integers(state: State, bits: int = 4, group: int | None = 32, symmetric: bool = True) -> State:
    """compressed-tensors, `pack-quantized`."""

    def store(name: str, weight: torch.Tensor) -> State:
        codes, scale, zero = to_codes(weight, bits, group, symmetric)
        parts = {"packed": pack(codes, bits), "scale": scale, "shape": torch.tensor(weight.shape)}
        if not symmetric:
            parts["zero_point"] = pack(zero.T.contiguous(), bits).T.contiguous()
        return {f"{name}_{part}": tensor for part, tensor in parts.items()}

    return each(state, store, linear=True)


def as_fp4(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers up to 6 as codes of 4-bit floats, two a byte, the first in the low half."""
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    codes = (numbers.abs()[..., None] - table).abs().argmin(-1) + 8 * (numbers < 0)
    return (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)


def nvfp4(state: State, modelopt: bool = False) -> State:
    def store(name: str, weight: torch.Tensor) -> State:
        groups = weight.reshape(len(weight), -1, 16)
        largest = groups.abs().amax(-1)
        whole = 448 * 6 / largest.max()
        scale = (largest / 6 * whole).to(torch.float8_e4m3fn)
        factor = (scale.float() / whole).clamp_min(1e-12)
        codes = as_fp4((groups / factor[..., None]).reshape(weight.shape))
        if modelopt:
            return {name: codes, f"{name}_scale": scale, f"{name}_scale_2": 1 / whole}
        return {f"{name}_packed": codes, f"{name}_scale": scale, f"{name}_global_scale": whole[None]}

    return each(state, store, linear=True)


def mxfp4(state: State) -> State:
    def store(name: str, weight: torch.Tensor) -> State:
        groups = weight.reshape(len(weight), -1, 32)
        power = (groups.abs().amax(-1) / 6).clamp_min(1e-12).log2().ceil()
        codes = as_fp4((groups / power.exp2()[..., None]).reshape(weight.shape))
        return {f"{name}_packed": codes, f"{name}_scale": (power + 127).to(torch.uint8)}

    return each(state, store, linear=True)


def rows_int8(state: State, scale_name: str = "{}_scale", factor: float = 1.0) -> State:
    def store(name: str, weight: torch.Tensor) -> State:
        scale = weight.flatten(1).abs().amax(1) / 127
        codes = (weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).round().to(torch.int8)
        return {name: codes, scale_name.format(name): scale * factor}

    return each(state, store)


def bitsandbytes_8bit(state: State) -> State:
    def store(name: str, weight: torch.Tensor) -> State:
        most, module = weight.abs().amax(1), name.removesuffix(".weight")
        codes = (weight / most[:, None] * 127).round().to(torch.int8)
        return {name: codes, f"{module}.SCB": most, f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8)}

    return each(state, store, linear=True)


def rows_uint8(state: State) -> State:
    def store(name: str, weight: torch.Tensor) -> State:
        codes, scale, zero = to_codes(weight.flatten(1), 8, None, symmetric=False)
        return {
            name: codes.reshape(weight.shape).to(torch.uint8),
            f"{name}_scale": scale[:, 0],
            f"{name}_zero_point": zero[:, 0].int(),
        }

    return each(state, store)


def bitsandbytes_4bit(
    state: State, kind: str = "nf4", nested: bool = False, storage: torch.dtype = torch.uint8
) -> State:
    from hf_watermark.backbones.stored.floats import TABLES

    table, block = torch.tensor(TABLES[kind]), 64

    def store(name: str, weight: torch.Tensor) -> State:
        flat = weight.flatten()
        blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block)).reshape(-1, block)
        most = blocks.abs().amax(1)
        told: dict[str, Any] = {
            "quant_type": kind,
            "blocksize": block,
            "dtype": "float32",
            "shape": list(weight.shape),
        }
        parts: State = {"quant_map": table}
        if nested:
            offset, size = float(most.mean()), 256
            values = torch.linspace(-1, 1, 256)
            left = most - offset
            largest = torch.nn.functional.pad(left, (0, -len(left) % size)).reshape(-1, size).abs().amax(1)
            codes = (left / largest.repeat_interleave(size)[: len(left)])[:, None].sub(values).abs().argmin(1)
            most = values[codes] * largest.repeat_interleave(size)[: len(left)] + offset
            parts |= {"absmax": codes.to(torch.uint8), "nested_absmax": largest, "nested_quant_map": values}
            told |= {"nested_blocksize": size, "nested_dtype": "float32", "nested_offset": offset}
        else:
            parts["absmax"] = most
        codes = (blocks / most.clamp_min(1e-12)[:, None])[..., None].sub(table).abs().argmin(-1).flatten()[: len(flat)]
        packed = (codes[::2] << 4 | codes[1::2]).to(torch.uint8)
        parts[f"quant_state.bitsandbytes__{kind}"] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
        return {name: packed.view(storage)[:, None]} | {f"{name}.{part}": tensor for part, tensor in parts.items()}

    return each(state, store, linear=True)


def float8(state: State, blocks: int | None = None, rows: bool = True) -> State:
    """One scale for each tensor, row or block."""

    def store(name: str, weight: torch.Tensor) -> State:
        if blocks and weight.ndim == 2:
            high, wide = (-(-size // blocks) for size in weight.shape)
            padded = torch.nn.functional.pad(
                weight, (0, wide * blocks - weight.shape[1], 0, high * blocks - len(weight))
            )
            scale = padded.reshape(high, blocks, wide, blocks).abs().amax((1, 3)) / 448
            whole = scale.repeat_interleave(blocks, 0).repeat_interleave(blocks, 1)[: len(weight), : weight.shape[1]]
            return {name: (weight / whole).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}
        scale = weight.flatten(1).abs().amax(1) / 448 if rows else weight.abs().max() / 448
        by_row = scale.reshape(-1, *[1] * (weight.ndim - 1))
        return {
            name: (weight / by_row).to(torch.float8_e4m3fn),
            f"{name}_scale": scale.reshape(-1, 1) if rows else scale,
        }

    return each(state, store)


def torchao(state: State, bits: int = 8, kind: str = "int8") -> State:
    def store(name: str, weight: torch.Tensor) -> State:
        start = "{}._{}".format(*name.rsplit(".", 1))
        if kind == "float8":
            scale = weight.abs().amax(1, keepdim=True) / 448
            return {f"{start}_qdata": (weight / scale).to(torch.float8_e4m3fn), f"{start}_scale": scale}
        codes, scale, zero = to_codes(weight, bits, None if bits == 8 else 32, symmetric=False)
        middle = 2 ** (bits - 1)
        parts = {
            "qdata": (codes - middle).to(torch.int8),
            "scale": scale,
            "zero_point": (zero - middle).to(torch.int8),
        }
        return {f"{start}_{part}": tensor for part, tensor in parts.items()}

    return each(state, store, linear=True)


def quanto(state: State) -> State:
    def store(name: str, weight: torch.Tensor) -> State:
        scale = weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.ndim - 1)) / 127
        return {f"{name}._data": (weight / scale).round().to(torch.int8), f"{name}._scale": scale}

    return each(state, store)


def write(folder: Path, files: State, config: dict[str, Any] | None = None, name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.detach().clone().contiguous() for key, tensor in files.items()}, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def gguf(state: State, folder: Path, kind: str) -> None:
    """As llama.cpp's converters write it; rows that a kind has no blocks for stay F16."""
    import gguf as library

    folder.mkdir(parents=True, exist_ok=True)
    writer = library.GGUFWriter(folder / "model.gguf", "clip")
    wanted = library.GGMLQuantizationType[kind]
    taken = weights(state, linear=False)
    for name, tensor in state.items():
        block = library.GGML_QUANT_SIZES[wanted][0]
        own = wanted if name in taken and tensor.shape[-1] % block == 0 else library.GGMLQuantizationType.F32
        if not tensor.is_floating_point() or tensor.ndim == 0:
            continue
        writer.add_tensor(name, library.quantize(tensor.numpy(), own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def onnx(model: Any, folder: Path, images: torch.Tensor, way: str = "dynamo") -> None:
    """Exported by torch's new or old exporter, then as it is, with its constants outside, or quantised by onnxruntime."""
    import logging
    import warnings

    import onnx as library

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.onnx"
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Logits(model).eval(), (images,), file, dynamo=way != "old", external_data=False, verbose=False
        )
        if way == "outside":
            graph = library.load(file)
            library.save(graph, file, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
        if way in ("dynamic", "signed"):
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(
                file,
                file,
                per_channel=way == "signed",
                weight_type=QuantType.QInt8 if way == "signed" else QuantType.QUInt8,
            )
        if way in ("qdq", "qoperator"):
            _static(file, images, way)
        if way == "nbits":
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

            quantizer = MatMulNBitsQuantizer(str(file), block_size=32, is_symmetric=False, bits=4)
            quantizer.process()
            quantizer.model.save_model_to_file(str(file), use_external_data_format=False)
    logging.disable(logging.NOTSET)


def _static(file: Path, images: torch.Tensor, way: str) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Once(CalibrationDataReader):
        left = [{"x": images.numpy()}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    import onnx as library

    Once.left = [{library.load(file).graph.input[0].name: images.numpy()}]
    form = QuantFormat.QDQ if way == "qdq" else QuantFormat.QOperator
    quantize_static(file, file, Once(), quant_format=form, per_channel=True, weight_type=QuantType.QInt8)


class Logits(torch.nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=x).logits
