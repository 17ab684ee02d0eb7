"""
Files of a marked model in every form in which somebody may upload it: what the marks in its weights and in its answers are read from them.

    python examples/benchmarks/formats.py --nets-folder runs/format_nets --output runs/formats.json

Two nets, see `format_nets.py`: a ResNet of 0.31 million parameters on the digits, and a vision transformer of 0.53 million for the formats that store linear layers
only. Each is stored in a format and read as a folder (`direct`), as a repository by ranges (`range`), and, with its channels permuted first, as a folder beside
the model before the mark (`aligned`); and the stored net is asked (`answers`). `unmarked` is the net before its weights were marked, stored and read as a folder. The Hub is a server on this machine. Rows that are there are not measured again.
"""

import argparse
import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from alignment import Results
from format_nets import MarkedNet, load
from transformers import PreTrainedModel

from hf_watermark import Evidence, verify
from hf_watermark.attacks import Permute
from hf_watermark.serialization import InvalidInput


sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
import quantised as q  # noqa: E402
from client import connect  # noqa: E402
from server import HubServer  # noqa: E402


State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Format:
    """
    Args:
        nets (`str`): Which of the two nets are stored so.
        write (`Callable`): From a model to files in a folder.
    """

    nets: str
    write: Callable[[PreTrainedModel, Path], None]


def tensors(
    make: Callable[[State], State], config: dict[str, Any] | None = None
) -> Callable[[PreTrainedModel, Path], None]:
    return lambda model, folder: _write(make, config, model, folder)


def _write(
    make: Callable[[State], State], config: dict[str, Any] | None, model: PreTrainedModel, folder: Path
) -> None:
    q.write(folder, make({name: tensor.detach().clone() for name, tensor in model.state_dict().items()}), config)


def cast(dtype: torch.dtype) -> Callable[[State], State]:
    return lambda state: {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def turned(state: State) -> State:
    return {name: t.permute(0, 2, 3, 1) if t.ndim == 4 else t for name, t in state.items()}


def averaged(state: State) -> State:
    """A running average beside the model, in one file."""
    generator = torch.Generator().manual_seed(1)
    noisy = {
        name: t + 0.02 * t.std() * torch.randn(t.shape, generator=generator) if t.ndim > 1 else t
        for name, t in state.items()
    }
    return prefixed("model.")(state) | prefixed("model_ema.")(noisy)


def two_precisions(model: PreTrainedModel, folder: Path) -> None:
    state = dict(model.state_dict())
    q.write(folder, cast(torch.float16)(state), name="model.fp16.safetensors")
    q.write(folder, state, name="model.fp32.safetensors")


def shards(model: PreTrainedModel, folder: Path, lost: int | None) -> None:
    names = list(model.state_dict())
    parts = [names[place::3] for place in range(3)]
    files = [f"model-{place + 1:05}-of-00003.safetensors" for place in range(3)]
    for place, (part, file) in enumerate(zip(parts, files, strict=True)):
        if place != lost:
            q.write(folder, {name: model.state_dict()[name] for name in part}, name=file)
    weight_map = {name: file for part, file in zip(parts, files, strict=True) for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def nibbles(state: State) -> State:
    """Two codes a byte and a scale, without a word about their order."""

    def store(name: str, weight: torch.Tensor) -> State:
        codes, scale, _ = q.to_codes(weight, 4, None, symmetric=True)
        return {name: (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8), f"{name}_scale": scale[:, 0]}

    return q.each(state, store, linear=True)


def hqq(state: State) -> State:
    def store(name: str, weight: torch.Tensor) -> State:
        module, (codes, scale, zero) = name.removesuffix(".weight"), q.to_codes(weight, 4, 32, symmetric=False)
        return {f"{module}.W_q": codes.to(torch.uint8), f"{module}.scale": scale, f"{module}.zero": zero.float()}

    return q.each(state, store, linear=True)


def without_scale(state: State) -> State:
    return {name: t for name, t in q.rows_int8(state).items() if not name.endswith("_scale")}


def onnx(way: str) -> Callable[[PreTrainedModel, Path], None]:
    return lambda model, folder: q.onnx(
        copy.deepcopy(model), folder, torch.randn(4 if "q" in way else 1, 1, 32, 32), way
    )


def gguf(kind: str) -> Callable[[PreTrainedModel, Path], None]:
    return lambda model, folder: q.gguf({name: t.detach() for name, t in model.state_dict().items()}, folder, kind)


BOTH, VIT = "resnet vit", "vit"
GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
FORMATS = {
    "float32": Format(BOTH, tensors(dict)),
    "bfloat16": Format(BOTH, tensors(cast(torch.bfloat16))),
    "float16": Format(BOTH, tensors(cast(torch.float16))),
    "float64": Format("resnet", tensors(cast(torch.float64))),
    "[out, height, width, in]": Format("resnet", tensors(turned)),
    "prefix state_dict.model_ema.net.": Format(BOTH, tensors(prefixed("state_dict.model_ema.net."))),
    "prefix _orig_mod.module.": Format("resnet", tensors(prefixed("_orig_mod.module."))),
    "counters stripped": Format("resnet", tensors(lambda state: {n: t for n, t in state.items() if "num_batches" not in n})),
    "average beside the model": Format(BOTH, tensors(averaged)),
    "fp16 and fp32 side by side": Format("resnet", two_precisions),
    "three shards": Format("resnet", lambda model, folder: shards(model, folder, None)),
    "three shards, one missing": Format("resnet", lambda model, folder: shards(model, folder, 1)),
    "float8, tensor": Format(BOTH, tensors(lambda state: q.float8(state, rows=False))),
    "float8, rows": Format(BOTH, tensors(q.float8)),
    "float8, blocks of 32": Format(VIT, tensors(lambda state: q.float8(state, 32))),
    "int8": Format(BOTH, tensors(q.rows_int8)),
    "int8 without scales": Format("resnet", tensors(without_scale)),
    "uint8 with zero points": Format(BOTH, tensors(q.rows_uint8)),
    "int4, two a byte, no word on order": Format(VIT, tensors(nibbles)),
    "bitsandbytes 8-bit": Format(VIT, tensors(q.bitsandbytes_8bit)),
    "bitsandbytes nf4": Format(VIT, tensors(q.bitsandbytes_4bit)),
    "bitsandbytes nf4, nested": Format(VIT, tensors(lambda state: q.bitsandbytes_4bit(state, nested=True))),
    "bitsandbytes fp4": Format(VIT, tensors(lambda state: q.bitsandbytes_4bit(state, "fp4"))),
    "GPTQ 4-bit": Format(VIT, tensors(q.gptq)),
    "GPTQ 4-bit, asymmetric, act order": Format(VIT, tensors(lambda state: q.gptq(state, symmetric=False, ordered=True), GPTQ)),
    "GPTQ 4-bit, asymmetric, no config": Format(VIT, tensors(lambda state: q.gptq(state, symmetric=False))),
    "GPTQ 8-bit": Format(VIT, tensors(lambda state: q.gptq(state, 8))),
    "GPTQ 3-bit": Format(VIT, tensors(lambda state: q.gptq(state, 3))),
    "AWQ": Format(VIT, tensors(q.awq)),
    "compressed-tensors int4": Format(VIT, tensors(q.packed_integers)),
    "compressed-tensors int4, asymmetric": Format(VIT, tensors(lambda state: q.packed_integers(state, symmetric=False))),
    "compressed-tensors NVFP4": Format(VIT, tensors(q.nvfp4)),
    "compressed-tensors MXFP4": Format(VIT, tensors(q.mxfp4)),
    "ModelOpt NVFP4": Format(VIT, tensors(lambda state: q.nvfp4(state, modelopt=True))),
    "torchao int8": Format(VIT, tensors(q.torchao)),
    "torchao int4, unpacked": Format(VIT, tensors(lambda state: q.torchao(state, 4))),
    "torchao float8": Format(VIT, tensors(lambda state: q.torchao(state, kind="float8"))),
    "quanto int8": Format(BOTH, tensors(q.quanto)),
    "HQQ": Format(VIT, tensors(hqq)),
    "GGUF F16": Format(BOTH, gguf("F16")),
    "GGUF Q8_0": Format(VIT, gguf("Q8_0")),
    "GGUF Q4_0": Format(VIT, gguf("Q4_0")),
    "ONNX": Format(BOTH, onnx("dynamo")),
    "ONNX, old exporter": Format(BOTH, onnx("old")),
    "ONNX, constants outside": Format(BOTH, onnx("outside")),
    "ONNX, dynamic uint8": Format(BOTH, onnx("dynamic")),
    "ONNX, dynamic int8, channels": Format(VIT, onnx("signed")),
    "ONNX, QDQ int8": Format(BOTH, onnx("qdq")),
    "ONNX, QOperator int8": Format("resnet", onnx("qoperator")),
    "ONNX, MatMulNBits": Format(VIT, onnx("nbits")),
}  # fmt: skip


def seen(read: Callable[[], Evidence]) -> dict[str, Any]:
    """Verdict, evidence and share of right bits; for what is refused its words."""
    try:
        evidence = read()
    except (InvalidInput, ImportError) as error:
        return {"verdict": "refused", "reason": str(error)[:300]}
    right, read_bits = evidence.matches, evidence.trials
    row: dict[str, Any] = {
        "verdict": str(evidence.verdict),
        "log2_p": round(evidence.log2_p, 1),
        "right": right,
        "bits": read_bits,
    }
    return row if evidence.found else row | {"reason": evidence.reason[:300]}


def measure(net: MarkedNet, permuted: PreTrainedModel, name: str, hub: HubServer) -> dict[str, Any]:
    white, black = net.keys["white"], net.keys["black"]
    with tempfile.TemporaryDirectory() as place:
        plain, mixed, before = (Path(place) / name for name in ("plain", "permuted", "before"))
        FORMATS[name].write(net.model, plain)
        FORMATS[name].write(permuted, mixed)
        FORMATS[name].write(net.start, before)
        hub.add_folder("you/suspect", plain)
        return {
            "direct": seen(lambda: verify(plain, white)),
            "range": seen(lambda: verify("you/suspect", white)),
            "aligned": seen(lambda: verify(mixed, white, reference=net.start)),
            "answers": seen(lambda: verify(plain, black)),
            "unmarked": seen(lambda: verify(before, white)),
            "answers, repository": seen(lambda: verify("you/suspect", black)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets-folder", type=Path, default=Path("runs/format_nets"))
    parser.add_argument("--nets", nargs="+", default=["resnet", "vit"])
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--output", type=Path, default=Path("runs/formats.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = Results(options.output)
    for which in options.nets:
        net = load(which, options.nets_folder)
        permuted = Permute(seed=1)(net.model, [{"pixel_values": torch.zeros(1, 32, 32)}])
        for name in options.formats:
            if which in FORMATS[name].nets.split():
                with pytest.MonkeyPatch.context() as patch, HubServer() as hub, tempfile.TemporaryDirectory() as home:
                    connect(patch, hub.url, Path(home))
                    results.row(which, name, lambda: measure(net, permuted, name, hub))


if __name__ == "__main__":
    main()
