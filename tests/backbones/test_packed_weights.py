"""Weights that are stored in parts: put together as the libraries do it, or named."""

import math
import random

import pytest
import quantised as q
import torch

from hf_watermark.backbones import read_float
from hf_watermark.backbones.stored import decoded
from hf_watermark.backbones.stored.packed import by_group, group_size, unpack
from hf_watermark.backbones.stored.view import why_not_read
from hf_watermark.serialization import InvalidInput, UnreadableFormat


STATE = {
    "a.weight": torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) / 10,
    "b.weight": torch.randn(96, 64, generator=torch.Generator().manual_seed(1)) / 10,
    "c.weight": torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(2)),
    "n.weight": torch.randn(64, generator=torch.Generator().manual_seed(3)),
}
GPTQ = {"quant_method": "gptq"}
# Writer, largest relative error of a matrix, name of the format.
FORMATS = {
    "GPTQ": (q.gptq(STATE), 0.1, "GPTQ, 4 bits"),
    "GPTQ, 8 bits": (q.gptq(STATE, 8), 0.01, "GPTQ, 8 bits"),
    "GPTQ, 3 bits": (q.gptq(STATE, 3), 0.25, "GPTQ, 3 bits"),
    "GPTQ, 2 bits": (q.gptq(STATE, 2), 0.5, "GPTQ, 2 bits"),
    "GPTQ v2": (q.gptq(STATE, version=2), 0.1, "GPTQ, 4 bits"),
    "GPTQ, asymmetric": (q.gptq(STATE, symmetric=False), 0.1, "GPTQ, 4 bits"),
    "GPTQ, act order": (q.gptq(STATE, ordered=True), 0.1, "GPTQ, 4 bits"),
    "AWQ": (q.awq(STATE), 0.1, "AWQ, 4 bits"),
    "pack-quantized": (q.packed_integers(STATE), 0.1, "packed integers of compressed-tensors, 4 bits"),
    "pack-quantized, asymmetric": (q.packed_integers(STATE, 8, None, False), 0.01, "packed integers of compressed-tensors, 8 bits"),
    "NVFP4": (q.nvfp4(STATE), 0.12, "NVFP4 of compressed-tensors"),
    "NVFP4 of ModelOpt": (q.nvfp4(STATE, modelopt=True), 0.12, "NVFP4 of ModelOpt"),
    "MXFP4": (q.mxfp4(STATE), 0.14, "MXFP4 of compressed-tensors"),
    "bitsandbytes int8": (q.bitsandbytes_8bit(STATE), 0.01, "int8 codes of bitsandbytes"),
    "nf4": (q.bitsandbytes_4bit(STATE), 0.1, "nf4 codes of bitsandbytes"),
    "nf4, nested": (q.bitsandbytes_4bit(STATE, nested=True), 0.1, "nf4 codes of bitsandbytes"),
    "nf4, stored as bfloat16": (q.bitsandbytes_4bit(STATE, storage=torch.bfloat16), 0.1, "nf4 codes of bitsandbytes"),
    "fp4": (q.bitsandbytes_4bit(STATE, "fp4"), 0.14, "fp4 codes of bitsandbytes"),
    "torchao int8": (q.torchao(STATE), 0.01, "i8 codes of torchao"),
    "torchao int4": (q.torchao(STATE, 4), 0.1, "i8 codes of torchao"),
    "torchao float8": (q.torchao(STATE, kind="float8"), 0.03, "f8_e4m3 codes of torchao"),
    "quanto": (q.quanto(STATE), 0.01, "codes of quanto"),
    "int8": (q.rows_int8(STATE), 0.01, "i8 codes"),
    "uint8": (q.rows_uint8(STATE), 0.01, "u8 codes"),
    "float8, tensor": (q.float8(STATE, rows=False), 0.03, "f8_e4m3 codes"),
    "float8, rows": (q.float8(STATE), 0.03, "f8_e4m3 codes"),
    "float8, blocks": (q.float8(STATE, 32), 0.03, "f8_e4m3 codes"),
}  # fmt: skip


def error_of(tensors, name):
    return float((read_float(tensors, name) - STATE[name]).norm() / STATE[name].norm())


@pytest.mark.parametrize("name", FORMATS)
def test_every_weight_comes_back(name):
    files, error, form = FORMATS[name]
    found, forms = decoded(files, GPTQ)
    assert forms == form
    # Parts are no weights.
    kept = {other for other in found if not other.endswith(("_scale", "_zero_point", "_scale_inv"))}
    assert kept == set(STATE) and all(tuple(found[other].shape) == STATE[other].shape for other in kept)
    assert max(error_of(found, other) for other in STATE) <= error
    assert torch.equal(found["n.weight"], STATE["n.weight"])


def test_plain_tensors_are_returned_themselves():
    assert decoded(STATE) == (STATE, "")


# --- Against the libraries that write these files


def test_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    layer = torch.nn.Linear(128, 40)
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            stored = bnb.nn.Linear4bit(128, 40, quant_type=kind, compress_statistics=nested)
            stored.load_state_dict(layer.state_dict())
            stored = stored.to("cpu")
            wanted = bnb.functional.dequantize_4bit(stored.weight.data, stored.weight.quant_state)
            torch.testing.assert_close(decoded(dict(stored.state_dict()))[0]["weight"], wanted, rtol=0, atol=1e-6)
    stored = bnb.nn.Linear8bitLt(128, 40, has_fp16_weights=False)
    stored.load_state_dict(layer.state_dict())
    found, form = decoded(torch.nn.Sequential(stored.to("cpu")).state_dict())
    assert form == "int8 codes of bitsandbytes"
    most = layer.weight.detach().abs().max()
    torch.testing.assert_close(found["0.weight"], layer.weight.detach(), rtol=0, atol=float(most) / 200)


def compressed(bits, kind, strategy, group, symmetric=True):
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    settings = {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": group, "symmetric": symmetric}
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**settings))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_integers_of_compressed_tensors(bits, symmetric):
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor

    weight = STATE["a.weight"]
    _, scale, zero = q.to_codes(weight, bits, 32, symmetric)
    given = {"weight": weight, "weight_scale": scale, "weight_zero_point": (zero - 2 ** (bits - 1)).to(torch.int8)}
    scheme = compressed(bits, "int", "group", 32, symmetric)
    files = PackedQuantizationCompressor.compress(given, scheme)
    wanted = PackedQuantizationCompressor.decompress(dict(files), scheme)["weight"]
    found, _ = decoded({f"m.{name}": tensor for name, tensor in files.items()})
    assert list(found) == ["m.weight"] and torch.equal(found["m.weight"], wanted)


def test_four_bit_floats_of_compressed_tensors():
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor

    for compressor, files, scheme in (
        (NVFP4PackedCompressor, q.nvfp4({"weight": STATE["a.weight"]}), compressed(4, "float", "tensor_group", 16)),
        (MXFP4PackedCompressor, q.mxfp4({"weight": STATE["a.weight"]}), compressed(4, "float", "group", 32)),
    ):
        wanted = compressor.decompress(dict(files), scheme)["weight"]
        # The library computes in bfloat16.
        torch.testing.assert_close(decoded(files)[0]["weight"], wanted.float(), rtol=1e-2, atol=1e-4)


def test_torchao():
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    four = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    for config in (Int8WeightOnlyConfig(), four, Float8WeightOnlyConfig()):
        net = torch.nn.Sequential(torch.nn.Linear(128, 48, bias=False))
        quantize_(net, config)
        files, _ = flatten_tensor_state_dict({"0.weight": net[0].weight})
        found, _ = decoded(files)
        assert list(found) == ["0.weight"] and torch.equal(found["0.weight"], net[0].weight.dequantize())


def test_quanto():
    quanto = pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    net = torch.nn.Sequential(torch.nn.Linear(128, 48))
    quanto.quantize(net, weights=quanto.qint8)
    quanto.freeze(net)
    found, _ = decoded(net.state_dict())
    assert torch.equal(found["0.weight"], net[0].weight.dequantize())
    quanto.quantize(net := torch.nn.Sequential(torch.nn.Linear(128, 256)), weights=quanto.qint4)
    quanto.freeze(net)
    found, form = decoded(net.state_dict())
    assert "0.weight" not in found and "packed codes of quanto" in form


def test_three_bits_lie_as_autogptq_packs_them():
    """The 11th and 22nd of 32 codes are spread over two words; as its `pack` writes them, by hand."""
    codes, words = [number % 8 for number in range(32)], [0, 0, 0]
    for place, code in enumerate(codes):
        for bit in range(3):
            at = 3 * place + bit
            words[at // 32] |= (code >> bit & 1) << (at % 32)
    by_hand = [0, 0, 0]
    for place in range(10):
        by_hand[0] |= codes[place] << 3 * place
        by_hand[1] |= codes[11 + place] << (3 * place + 1)
        by_hand[2] |= codes[22 + place] << (3 * place + 2)
    by_hand[0] |= (codes[10] & 3) << 30
    by_hand[1] |= codes[10] >> 2 | (codes[21] & 1) << 31
    by_hand[2] |= codes[21] >> 1
    assert words == by_hand
    stored = torch.tensor([[word - 2**32 * (word >= 2**31) for word in words]], dtype=torch.int32)
    assert unpack(stored, 3, 32).tolist() == [codes]


# --- What cannot be told is named


def test_groups_that_cannot_be_told():
    assert group_size(128, 4) == 32 and group_size(144, 2) is None and group_size(100, 4) is None
    assert group_size(200, 2) is None and group_size(96, 4) == 24 and group_size(130, 3) == 64
    with pytest.raises(UnreadableFormat, match="2 factors for 144 columns"):
        by_group(torch.ones(3, 2), 144, "w_scale")


def test_gptq_without_a_word_on_its_version():
    with pytest.raises(UnreadableFormat, match="first or second version, nothing says"):
        decoded(q.gptq(STATE, symmetric=False))[0]["a.weight"]
    found, _ = decoded(q.gptq(STATE, symmetric=False, version=2), {"checkpoint_format": "gptq_v2"})
    assert error_of(found, "a.weight") < 0.1


def test_a_table_that_is_not_its_kernels():
    files = q.bitsandbytes_4bit(STATE)
    files["a.weight.quant_map"] = files["a.weight.quant_map"].flip(0)
    with pytest.raises(UnreadableFormat, match="another table than its kernels use"):
        decoded(files)[0]["a.weight"]


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.W_q", "HQQ"), ("a.codebooks", "AQLM"), ("a.weight_blocks", "MXFP4 blocks"), ("a.trellis", "EXL3")],
)
def test_formats_that_are_known_by_name(name, form):
    found, forms = decoded({name: torch.zeros(4, 4, dtype=torch.uint8), "b.weight": torch.ones(2, 2)})
    assert forms == form and list(found) == ["b.weight"]


def test_what_a_config_says():
    assert "stored by 'aqlm', which is not read" in why_not_read({"quant_method": "aqlm"})
    assert "rotated" in why_not_read({"quant_method": "compressed-tensors", "transform_config": {"r1": 1}})
    assert why_not_read({}) == why_not_read(GPTQ) == why_not_read({"quant_method": 7}) == ""
    assert "\x1b" not in why_not_read({"quant_method": "\x1b[2J" * 100})


def test_a_plain_weight_beside_codes_is_read_too():
    """Whoever plants codes beside a weight cannot hide it."""
    files = q.gptq(STATE) | {"a.weight": STATE["a.weight"]}
    found, _ = decoded(files)
    assert torch.equal(found["a.weight"], STATE["a.weight"]) and 0 < error_of_copy(found, "a.weight") < 0.1


def error_of_copy(found, name):
    return float((found[f"decoded.{name}"] - STATE[name]).norm() / STATE[name].norm())


# --- Files from strangers


def mangled(files, draw):
    """One part that is lost, or has another shape, type or content."""
    files = dict(files)
    name = draw.choice([name for name in files if name not in STATE or files[name].dtype != torch.float32])
    tensor = files[name]
    way = draw.randrange(8)
    if way == 0:
        del files[name]
    elif way == 1:
        files[name] = tensor.flatten()
    elif way == 2:
        files[name] = tensor[: max(1, len(tensor) // 2)].clone() if tensor.ndim else tensor
    elif way == 3:
        files[name] = tensor.float() * torch.nan
    elif way == 4:
        files[name] = torch.zeros_like(tensor)
    elif way == 5:
        files[name] = tensor.to(
            draw.choice([torch.uint8, torch.int32, torch.float16, torch.int64, torch.float8_e4m3fn])
        )
    elif way == 6:
        files[name] = torch.randint(
            0, 256, tuple(tensor.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(draw.randrange(99))
        )
    else:
        files[name] = tensor.reshape(*tensor.shape, 1, 1)
    return files


@pytest.mark.parametrize("name", FORMATS)
def test_malformed_files_are_named_and_cost_nothing(name):
    draw = random.Random(name)
    for _ in range(60):
        files = mangled(FORMATS[name][0], draw)
        found, _ = decoded(files, GPTQ)
        for other in list(found):
            try:
                tensor = read_float(found, other)
            except InvalidInput:
                continue
            assert math.prod(tensor.shape) <= 2**17


def test_what_a_part_says_about_itself_is_bounded():
    import json

    for told in (
        {"quant_type": "nf4", "blocksize": 64, "shape": [2**20, 2**20]},
        {"quant_type": "nf4", "blocksize": 2**40, "shape": [64, 128]},
        {"quant_type": "nf4", "blocksize": 64, "shape": []},
        {"quant_type": "nf4", "blocksize": 64, "shape": [-1, 4]},
        {"quant_type": "nf4", "blocksize": 0, "shape": [64, 128]},
        {"quant_type": "af4", "blocksize": 64, "shape": [64, 128]},
        {"blocksize": 64},
    ):
        raw = json.dumps(told).encode()
        files = q.bitsandbytes_4bit(STATE) | {
            "a.weight.quant_state.bitsandbytes__nf4": torch.tensor(list(raw), dtype=torch.uint8)
        }
        found, _ = decoded(files)
        assert "a.weight" not in found
    files = q.packed_integers(STATE) | {"a.weight_shape": torch.tensor([64, 2**40])}
    assert "a.weight" not in decoded(files)[0]
    files["a.weight_shape"] = torch.tensor([64, -128])
    assert "a.weight" not in decoded(files)[0]
