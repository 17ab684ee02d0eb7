"""What lies where a model, a key, an owner or an opening was expected: one sentence that says what it is and what to do."""

import json
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from hf_watermark import InvalidInput, Opening, Owner, Suspect, WatermarkKey, plan_key
from hf_watermark.serialization.kinds import kind_at


CONFIG = json.dumps({"model_type": "resnet"}).encode()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
FILES = [
    ("model.gguf", b"GGUF\x03\x00\x00\x00" + bytes(40), "is a GGUF file, for llama.cpp"),
    ("model.safetensors", b"GGUF\x03\x00\x00\x00" + bytes(40), "is a GGUF file, for llama.cpp"),
    ("model.safetensors", POINTER, "is a Git LFS pointer.* Run `git lfs pull`"),
    ("model.safetensors", b"", r"is empty \(0 bytes\).* Download or save it again"),
    ("model.safetensors", b"<!DOCTYPE html><title>404</title>", "is a web page.* `hf download`"),
    ("model.safetensors", b"\x80\x04\x95" + bytes(40), "is pickled, and reading a pickle can run code"),
    ("net.onnx", b"\x08\x07\x12\x07pytorch", "is an ONNX graph.* Give the safetensors from which it was converted"),
    ("pytorch_model.bin", b"\x80\x02", "pytorch_model.bin is pickled, and reading a pickle can run code"),
    ("last.PT", b"\x80\x02", "last.PT is pickled"),
    ("last.ckpt", b"anything", "last.ckpt is pickled"),
    ("tf_model.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file, of Keras or TensorFlow"),
    ("flax_model.msgpack", b"\x81", "is a Flax model"),
    ("net.tflite", b"\x1c\x00\x00\x00TFL3", "is a TensorFlow Lite model"),
    ("model.zip", b"PK\x03\x04" + bytes(40), "is a zip archive.* Unpack it"),
    ("train.parquet", b"PAR1", "is a table of a data set"),
    ("cat.png", b"\x89PNG\r\n\x1a\n", "is a picture"),
    ("config.json", CONFIG, "is the config of a model, without its weights.* Give the folder"),
    ("model.safetensors.index.json", b'{"weight_map": {}}', "is the index of a model in several files"),
]
FOLDERS = [
    ({}, "is an empty folder"),
    ({"config.json": CONFIG}, "holds a config.json, and no weights in safetensors"),
    ({"config.json": CONFIG, "pytorch_model.bin": b"x"}, "pytorch_model.bin is pickled"),
    ({"config.json": CONFIG, "tf_model.h5": b"x"}, "tf_model.h5 is an HDF5 file, of Keras or TensorFlow"),
    ({"config.json": CONFIG, "flax_model.msgpack": b"x"}, "flax_model.msgpack is a Flax model"),
    ({"model.onnx": b"x"}, "model.onnx: is an ONNX graph, and cannot be read"),
    ({"q4.gguf": b"x"}, "q4.gguf is a GGUF file"),
    ({"model_index.json": b"{}", "unet/model.safetensors": b"x"}, "is a diffusers pipeline"),
    ({"dataset_info.json": b"{}", "data.arrow": b"x"}, "is a data set"),
    ({"cats/1.png": b"x"}, r"is a folder of pictures \(cats/1.png\)"),
    (
        {"checkpoint-9/model.safetensors": b"x"},
        "holds no model itself, but its folder checkpoint-9 does.*Give that folder",
    ),
    ({"config.json": CONFIG, "model.safetensors": POINTER}, "model.safetensors: is a Git LFS pointer"),
    ({"notes.txt": b"x", "a": b"", "b": b"", "c": b""}, r"holds only a, b, c \.\.\."),
]


def written(folder, files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(("name", "content", "what"), FILES)
def test_a_file_that_is_no_model(tmp_path, name, content, what):
    path = written(tmp_path / "m", {name: content}) / name
    for reader, expected in (
        (Suspect.open, "expected a model in safetensors"),
        (Owner.load, "expected an owner file"),
    ):
        with pytest.raises(InvalidInput, match=what) as error:
            reader(path)
        assert expected in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(("files", "what"), FOLDERS)
def test_a_folder_that_is_no_model(tmp_path, files, what):
    folder = written(tmp_path / "m", files)
    with pytest.raises(InvalidInput, match=what) as error:
        Suspect.open(folder)
    assert str(folder) in str(error.value) and "expected a model in safetensors" in str(error.value)


def test_what_torch_saves_is_named_and_never_loaded(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "weights")
    with pytest.raises(InvalidInput, match="weights is pickled"):
        Suspect.open(tmp_path / "weights")
    with zipfile.ZipFile(tmp_path / "plain", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(InvalidInput, match="is a zip archive"):
        Suspect.open(tmp_path / "plain")


def test_a_file_that_safetensors_can_read_is_read_whatever_it_is_called(tmp_path):
    """Names and neighbours are the choice of whoever publishes a suspect: they explain a failure and never cause one."""
    save_file({"w": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "key.json").write_text("{}")
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        assert Suspect.open(path).weights["w"].sum() == 2
    other = (tmp_path / "adapter_model.safetensors").rename(tmp_path / "weights.bin")
    assert Suspect.open(other).weights["w"].sum() == 2


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """A key folder, an owner file, an opening and a model."""
    from tiny import tiny_resnet

    folder, owner, words = tmp_path_factory.mktemp("secrets"), Owner.create(), "a long enough passphrase"
    fields = {"method": "greedy_residuals", "bits": 16, "group_size": 16, "subkeys": 1}
    key = plan_key(tiny_resnet(), None, fields, owner)
    key.save(folder / "key", words)
    owner.save(folder / "owner.json", words)
    Opening.of(key, key.used[0]).save(folder / "opening.json")
    tiny_resnet().save_pretrained(folder / "model")
    (folder / "statement.json").write_text(json.dumps({"schema": "hf-watermark/statement/v2"}))
    (folder / "evidence.json").write_text(json.dumps({"verdict": "mark found", "log2_p": -1.5}))
    return folder


SECRET = "is a secret file .a key, an owner or a backup."
READERS = [
    (WatermarkKey.load, "model", "is the folder of a model; expected the owner's key folder"),
    (WatermarkKey.load, "model/model.safetensors", "is no folder; expected the owner's key folder"),
    (WatermarkKey.load, "owner.json", f"{SECRET}; expected the owner's key folder.*--owner"),
    (WatermarkKey.load, "key/key.json", f"{SECRET}; expected the owner's key folder"),
    (WatermarkKey.load, "opening.json", "is an opening .one disclosed sub-key.; expected the owner's key folder"),
    (Owner.load, "key", "is a key folder, and holds secrets; expected an owner file"),
    (Owner.load, "opening.json", "is an opening .*; expected an owner file, as `hf-watermark owner create`"),
    (Opening.load, "statement.json", "is a published statement; expected an opening, as `hf-watermark open` writes"),
    (Opening.load, "owner.json", f"{SECRET}; expected an opening"),
    (Opening.load, "key", "is a key folder, and holds secrets; expected an opening"),
    (Opening.load, "model", "is the folder of a model; expected an opening"),
    (Opening.load, "evidence.json", "is the evidence of a check; expected an opening"),
    (Suspect.open, "owner.json", f"{SECRET}; expected a model in safetensors"),
    (Suspect.open, "opening.json", "is an opening .*; expected a model in safetensors.*It is given with --opening"),
    (Suspect.open, "key", "is a key folder, and holds secrets; expected a model in safetensors"),
]


@pytest.mark.parametrize(("reader", "name", "message"), READERS)
def test_one_thing_given_for_another(secrets, reader, name, message):
    with pytest.raises(InvalidInput, match=message):
        reader(secrets / name)


def test_an_owner_under_the_name_of_a_key_is_not_one(tmp_path):
    with pytest.warns(UserWarning, match="without a passphrase"):
        Owner.create().save(tmp_path / "key.json")
    with pytest.raises(InvalidInput, match=r"another secret file of this library \(owner\); expected the owner's key"):
        WatermarkKey.load(tmp_path)


def test_nothing_is_said_of_what_is_not_known(tmp_path):
    for content in (b"\x01\x02\x03", b"\x80", b"{", b'{"schema": 5}', b"[" * 9):
        (tmp_path / "x").write_bytes(content)
        assert kind_at(tmp_path / "x") is None and kind_at(tmp_path / "absent") is None


def test_a_name_cannot_command_the_terminal(tmp_path):
    (tmp_path / "\x1b[2J.onnx").write_bytes(b"x")
    assert kind_at(tmp_path).what == "\\x1b[2J.onnx is an ONNX graph"
