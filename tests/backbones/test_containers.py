"""GGUF files and ONNX graphs as mappings of weights, and what is wrong with those of strangers."""

import random
import struct

import numpy as np
import pytest
import quantised as q
import torch
from tiny import tiny_resnet
from transformers import ViTConfig, ViTForImageClassification

from hf_watermark import InvalidInput, Suspect
from hf_watermark.backbones.containers import container_in, open_container
from hf_watermark.serialization import UnreadableFormat


gguf = pytest.importorskip("gguf", reason="gguf is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
STATE = {
    "a.weight": torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) / 10,
    "c.weight": torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(1)),
    "n.bias": torch.randn(64, generator=torch.Generator().manual_seed(2)),
}


def vit():
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_channels": 1,
    }
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=10))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)  # equal ones would be stored once
    return model.eval()


# --- GGUF


@pytest.mark.parametrize(("kind", "error"), [("F32", 0), ("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 0.01), ("Q4_0", 0.1), ("Q4_1", 0.1), ("Q5_0", 0.06)])  # fmt: skip
def test_gguf(kind, error, tmp_path):
    q.gguf(STATE, tmp_path, kind)
    found = open_container(tmp_path / "model.gguf")
    assert found.shapes == {name: tuple(tensor.shape) for name, tensor in STATE.items()}
    assert (kind in found.forms) == kind.startswith("Q") and found.forms.startswith("GGUF")
    for name, tensor in STATE.items():
        assert float((found[name].float() - tensor).norm() / tensor.norm()) <= error
    assert found.dtypes["n.bias"] == "F32"


def gguf_header(tensors=0, entries=0, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + rest


def text(raw):
    return struct.pack("<Q", len(raw)) + raw


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (gguf_header(), "it holds no tensors"),
        (gguf_header(tensors=2**60), "limit 20000"),
        (gguf_header(entries=2**60), "does not fit|IndexError"),
        # An array of 2^60 numbers that are not there.
        (gguf_header(1, 1, text(b"k") + struct.pack("<IIQ", 9, 0, 2**60)), "entries, or does not fit"),
        # As many that are there.
        (
            gguf_header(1, 1, text(b"k") + struct.pack("<IIQ", 9, 0, 120_000) + bytes(120_000)),
            "more than 100000 entries",
        ),
        # Arrays in arrays.
        (gguf_header(1, 1, text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000), "cannot be read"),
        (gguf_header(1, 0, text(b"w") + struct.pack("<IQQIQ", 2, 2**32, 2**32, 0, 0)), "cannot be read"),
        (gguf_header(1, 0, text(b"w") + struct.pack("<IQIQ", 1, 2**20, 0, 0)), "cannot be read"),
        (gguf_header(1, 0, text(b"w") + struct.pack("<IQIQ", 1, 4, 999, 0)), "cannot be read"),
        (gguf_header(1, 0, text(b"w" * 2000) + struct.pack("<IQIQ", 1, 4, 0, 0) + bytes(64)), "a limit is broken"),
        (b"GGUF", "cannot be read"),
    ],
)
def test_damaged_gguf(content, why, tmp_path):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(InvalidInput, match=f"is a GGUF file, for llama.cpp.*(?:{why})"):
        Suspect.open(tmp_path)


def test_bytes_turned_in_a_gguf_file(tmp_path):
    q.gguf(STATE, tmp_path, "Q8_0")
    whole, draw = (tmp_path / "model.gguf").read_bytes(), random.Random(0)
    for _ in range(150):
        raw = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            raw[draw.randrange(500)] = draw.randrange(256)
        (tmp_path / "x.gguf").write_bytes(raw)
        try:
            found = open_container(tmp_path / "x.gguf")
            sizes = [found[name].numel() for name in found] if found is not None else [0]
        except InvalidInput:
            continue
        assert sum(sizes) < 2**17


# --- ONNX


@pytest.mark.parametrize("way", ["dynamo", "old", "outside", "dynamic", "signed", "qdq", "nbits"])
def test_onnx_of_linear_layers(way, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = vit()
    if way == "nbits":
        pytest.importorskip("onnx_ir", reason="onnx_ir is not installed")
    q.onnx(
        model,
        tmp_path,
        torch.randn(4 if way == "qdq" else 1, 1, 16, 16, generator=torch.Generator().manual_seed(0)),
        way,
    )
    found = open_container(tmp_path / "model.onnx")
    least = {"nbits": 0.12, "dynamic": 0.03}.get(way, 0.02)
    for name, tensor in model.state_dict().items():
        if ".layers." in name and name.endswith("weight") and tensor.ndim == 2:
            [own] = [other for other in found if other.endswith(name)]
            assert found.shapes[own] == tuple(tensor.shape)
            assert float((found[own].float() - tensor).norm() / tensor.norm()) < least, name


@pytest.mark.parametrize("way", ["dynamo", "old", "dynamic", "qdq", "qoperator"])
def test_onnx_of_convolutions(way, tmp_path):
    """Exporters fold the normalisations in: the rows are those of the model up to a factor."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = tiny_resnet()
    q.onnx(model, tmp_path, torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)), way)
    found = open_container(tmp_path / "model.onnx")
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 4:
            [own] = [other for other in found if other.endswith(name)]
            rows, wanted = found[own].float().flatten(1), tensor.flatten(1)
            assert torch.nn.functional.cosine_similarity(rows, wanted).min() > (0.98 if way == "dynamic" else 0.999), (
                name
            )


def graph_with(*constants, nodes=()):
    return onnx.helper.make_model(onnx.helper.make_graph(list(nodes), "net", [], [], list(constants)))


def outside(name, location, offset=0, length=None):
    item = onnx.TensorProto(name=name, data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    told = {"location": location, "offset": str(offset)} | ({} if length is None else {"length": str(length)})
    for key, value in told.items():
        item.external_data.add(key=key, value=value)
    return item


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "a\0b"])
def test_constants_are_read_from_the_same_folder_only(location, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    onnx.save(graph_with(outside("w", location)), folder / "model.onnx")
    with pytest.raises(UnreadableFormat, match="no file of the same folder"):
        open_container(folder / "model.onnx")["w"]


def test_constants_outside(tmp_path):
    (tmp_path / "data").write_bytes(np.arange(6, dtype="float32").tobytes())
    items = [
        outside("w", "data", 8),
        outside("short", "data", 16),
        outside("long", "data", 0, 24),
        outside("lost", "none"),
    ]
    items.append(outside("before", "data", -4))
    onnx.save(graph_with(*items), tmp_path / "model.onnx")
    found = open_container(tmp_path / "model.onnx")
    assert found["w"].tolist() == [2, 3, 4, 5]
    for name, why in (
        ("short", "is shorter than"),
        ("long", "has 24 in data"),
        ("lost", "cannot be opened"),
        ("before", "is shorter than"),
    ):
        with pytest.raises(InvalidInput, match=why):
            found[name]


def test_damaged_onnx(tmp_path):
    file = tmp_path / "model.onnx"
    for content, why in (
        (b"\x08\x07\x12\x07pytorch", "holds no constants"),
        (b"x", "cut off"),
        (b"\x3a\xff\xff\xff\xff\x0f", "cut off"),
        (b"\xff" * 20, "too long|does not know"),
        (b"\x3a\x02\x0b\x0c", "does not know"),
    ):
        file.write_bytes(content)
        with pytest.raises(InvalidInput, match=f"is an ONNX graph, and cannot be read.*(?:{why})"):
            Suspect.open(file)


def test_a_graph_of_many_small_parts_is_refused_before_it_is_parsed(tmp_path):
    file = tmp_path / "model.onnx"
    inner = b"\x0a\x00" * 2_000_000  # as many empty nodes
    size, length = len(inner), bytearray()
    while size:
        length.append(size & 127 | 128 * (size > 127))
        size >>= 7
    file.write_bytes(b"\x3a" + bytes(length) + inner)
    with pytest.raises(InvalidInput, match="more than 1000000 parts"):
        open_container(file)


@pytest.mark.parametrize("dims", [[2**40], [-4], [2**20, 2**20], [0], [3]])
def test_constants_whose_shape_is_a_lie(dims, tmp_path):
    item = onnx.TensorProto(name="w", data_type=1, dims=dims, raw_data=bytes(16))
    onnx.save(graph_with(item, onnx.numpy_helper.from_array(np.ones(2, "float32"), "v")), tmp_path / "model.onnx")
    found = open_container(tmp_path / "model.onnx")
    assert found["v"].tolist() == [1, 1]
    if "w" in found:
        with pytest.raises(InvalidInput):
            found["w"]


@pytest.mark.parametrize("settings", [{"K": 2**40, "N": 8, "bits": 4, "block_size": 32}, {"K": 32, "N": 8, "bits": 5, "block_size": 32}, {"K": 32, "N": 8, "bits": 4, "block_size": 2**40}, {}])  # fmt: skip
def test_packed_integers_of_onnx_with_other_settings(settings, tmp_path):
    parts = {"w_Q4": np.zeros((8, 1, 16), "uint8"), "w_scales": np.ones(8, "float32")}
    items = [onnx.numpy_helper.from_array(array, name) for name, array in parts.items()]
    node = onnx.helper.make_node("MatMulNBits", ["x", *parts], ["y"], domain="com.microsoft", **settings)
    onnx.save(graph_with(*items, nodes=[node]), tmp_path / "model.onnx")
    found = open_container(tmp_path / "model.onnx")
    assert ("w" in found) == (settings.get("K") == 32)
    if "w" in found:
        with pytest.raises(UnreadableFormat, match="MatMulNBits"):
            found["w"]


def test_integers_whose_scale_cannot_be_told(tmp_path):
    node = onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    onnx.save(
        graph_with(onnx.numpy_helper.from_array(np.ones((4, 2), "int8"), "w"), nodes=[node]), tmp_path / "m.onnx"
    )
    found = open_container(tmp_path / "m.onnx")
    assert found.shapes == {"w": (2, 4)} and found.forms == "ONNX (integers of ONNX)"
    with pytest.raises(UnreadableFormat, match="its scale cannot be told"):
        found["w"]


def test_bytes_turned_in_an_onnx_file(tmp_path):
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "val_3"], ["y"], name="/a/b/MatMul"),
        onnx.helper.make_node("Conv", ["y", "c.weight"], ["z"]),
    ]
    items = [
        onnx.numpy_helper.from_array(np.ones((4, 6), "float32"), "val_3"),
        onnx.numpy_helper.from_array(np.ones((2, 4, 3, 3), "float32"), "c.weight"),
    ]
    onnx.save(graph_with(*items, nodes=nodes), tmp_path / "model.onnx")
    whole, draw = (tmp_path / "model.onnx").read_bytes(), random.Random(0)
    assert open_container(tmp_path / "model.onnx").shapes == {"a.b.weight": (6, 4), "c.weight": (2, 4, 3, 3)}
    for _ in range(300):
        raw = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        (tmp_path / "x.onnx").write_bytes(raw)
        try:
            found = open_container(tmp_path / "x.onnx")
            sizes = [found[name].numel() for name in found]
        except InvalidInput:
            continue
        assert sum(sizes) < 2**12


# --- Which file


def test_which_file_is_read():
    assert container_in(["a.bin", "config.json"]) is None
    assert container_in(["model_quantized.onnx", "model.onnx"]) == ("model.onnx", ("model_quantized.onnx",))
    assert container_in(["onnx/model.onnx", "onnx/model_q4.onnx", "deep/er/x.onnx", "net.pt"]) == (
        "onnx/model.onnx",
        ("net.pt", "onnx/model_q4.onnx", "deep/er/x.onnx"),
    )
    assert container_in(["b.gguf", "a.gguf"]) == ("a.gguf", ("b.gguf",))
