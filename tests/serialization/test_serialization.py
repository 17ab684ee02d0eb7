import json
import os
import stat
import struct
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_watermark import serialization
from hf_watermark.serialization import (
    InvalidInput,
    SafetensorsFolder,
    TensorInfo,
    UnreadableFormat,
    canonical_json,
    make_private_dir,
    named_tensors_digest,
    parse_json,
    read_json,
    read_private_bytes,
    read_safetensors_header,
    shown,
    tensor_set_digest,
    write_bytes_atomic,
    write_json_atomic,
)


posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permission bits")


# --- JSON -------------------------------------------------------------------------------------------------------


def test_json_round_trip(tmp_path):
    document = {"name": "é", "n": 2**53 - 1, "items": [True, None, {"deep": -1}]}
    write_json_atomic(tmp_path / "a.json", document)
    assert read_json(tmp_path / "a.json") == document
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"x": {"a": 1, "\\u0061": 2}}', "'a' appears twice"),
        (b'{"a": 1.0}', "1.0 is not an integer"),
        (b'{"a": 1e3}', "1e3 is not an integer"),
        (b'{"a": NaN}', "NaN is not an integer"),
        (b'{"a": -Infinity}', "-Infinity is not an integer"),
        (b'{"a": 9007199254740992}', "9007199254740992 is not below"),
        (b'{"a": -' + b"9" * 5000 + b"}", "is not below"),
        (b'{"a": "\xff"}', "Not valid JSON"),
        (b'{"a": "\\ud800"}', "Not valid JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "Not valid JSON"),
        (b'{"a": 1} {"b": 2}', "Not valid JSON"),
        (b'{"a": 1', "Not valid JSON"),
        (b"", "Not valid JSON"),
        (b"[1, 2]", "list at the top"),
        (b'{"a": ' + b"[" * 15_000 + b"]" * 15_000 + b"}", "nested more than 100 levels"),
        (b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}", "nested more than 100 levels"),
        (b'{"a": ' + b"[" * 20_000, "more than 20000 opening brackets"),
        (b'{"a": "' + b"x" * 262_144 + b'"}', "longer than 262144 bytes"),
    ],
)
def test_hostile_json_is_invalid_input(raw, message):
    with pytest.raises(InvalidInput, match=message):
        parse_json(raw)


def test_floats_only_on_request():
    assert parse_json(b'{"a": 0.5}', allow_floats=True) == {"a": 0.5}
    for raw in (b'{"a": 1e999}', b'{"a": NaN}', b'{"a": Infinity}'):
        with pytest.raises(InvalidInput):
            parse_json(raw, allow_floats=True)


def test_read_json_names_the_file(tmp_path):
    path = tmp_path / "statement.json"
    with pytest.raises(InvalidInput, match=r"statement\.json: cannot be opened"):
        read_json(path)
    path.write_bytes(b'{"a": 1.5}')
    with pytest.raises(InvalidInput, match=r"statement\.json: number 1\.5"):
        read_json(path)
    with pytest.raises(InvalidInput, match=r"statement\.json: is larger than 4 bytes"):
        read_json(path, max_bytes=4)
    with pytest.raises(InvalidInput, match="not a regular file"):
        read_json(tmp_path)


@posix_only
def test_a_named_pipe_does_not_hang_the_reader(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InvalidInput, match="not a regular file"):
        read_json(tmp_path / "pipe.json")


# --- writing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_failed_write_leaves_everything_as_it_was(tmp_path, monkeypatch, step, overwrite):
    path = tmp_path / "evidence.json"
    if overwrite:
        path.write_bytes(b"old")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_bytes_atomic(path, b"new", overwrite=overwrite)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_overwriting_is_a_choice(tmp_path):
    path = tmp_path / "key.json"
    write_bytes_atomic(path, b"first", overwrite=False)
    with pytest.raises(FileExistsError, match=r"key\.json"):
        write_bytes_atomic(path, b"second", overwrite=False)
    assert path.read_bytes() == b"first"
    write_bytes_atomic(path, b"third")
    assert path.read_bytes() == b"third"
    assert [file.name for file in tmp_path.iterdir()] == ["key.json"]


def test_unwritable_documents_write_nothing(tmp_path):
    for document in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json_atomic(tmp_path / "a.json", document)
    assert list(tmp_path.iterdir()) == []


@posix_only
def test_a_symlink_is_replaced_not_followed(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_bytes(b"precious")
    link.symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_bytes_atomic(link, b"new", overwrite=False)
    write_bytes_atomic(link, b"new")
    assert victim.read_bytes() == b"precious"
    assert not link.is_symlink() and link.read_bytes() == b"new"


# --- secrets ----------------------------------------------------------------------------------------------------


@posix_only
def test_private_files(tmp_path, monkeypatch):
    folder = tmp_path / "keys" / "my-model"
    make_private_dir(folder)
    make_private_dir(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    path = folder / "key.json"
    write_bytes_atomic(path, b"secret", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_private_bytes(path, max_bytes=100) == b"secret"

    with pytest.raises(InvalidInput, match="larger than 5 bytes"):
        read_private_bytes(path, max_bytes=5)
    (folder / "link").symlink_to(path)
    with pytest.raises(InvalidInput, match="is a symlink"):
        read_private_bytes(folder / "link", max_bytes=100)
    with pytest.raises(InvalidInput, match="cannot be opened"):
        read_private_bytes(folder / "missing", max_bytes=100)
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(InvalidInput, match="run `chmod 600`"):
            read_private_bytes(path, max_bytes=100)
    path.chmod(0o600)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(InvalidInput, match=f"belongs to user {owner}"):
        read_private_bytes(path, max_bytes=100)


@posix_only
def test_an_existing_folder_keeps_its_rights(tmp_path):
    tmp_path.chmod(0o755)
    make_private_dir(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


# --- safetensors headers ----------------------------------------------------------------------------------------


def write_raw(path, header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def entry(begin=0, end=4, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_header_of_a_library_file(tmp_path):
    tensors = {
        "conv.weight": torch.randn(2, 3),
        "bn.num_batches_tracked": torch.tensor(7),
        "half": torch.randn(4).bfloat16(),
        "mask": torch.tensor([True, False, True]),
        "eight": torch.randn(5).to(torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    infos = read_safetensors_header(tmp_path / "a.safetensors")
    assert {name: info.shape for name, info in infos.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert {name: info.dtype for name, info in infos.items()} == {
        "conv.weight": "F32",
        "bn.num_batches_tracked": "I64",
        "half": "BF16",
        "mask": "BOOL",
        "eight": "F8_E4M3",
    }
    raw = (tmp_path / "a.safetensors").read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    info = infos["conv.weight"]
    assert isinstance(info, TensorInfo)
    assert raw[start + info.begin : start + info.end] == tensors["conv.weight"].numpy().tobytes()


DUPLICATE = (
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        # accepted by the library itself, safetensors 0.8
        (DUPLICATE, 4, "'a' appears twice"),
        ({"n" * 1_000_000: entry()}, 4, "has 1000000 characters"),
        (b"{}" + b" " * 1000, 0, "holds 0 tensors"),
        ({f"t{i}": entry(i, i + 1, "U8") for i in range(20_001)}, 20_001, "opening brackets|holds 20001 tensors"),
        ({"a": entry(shape=[1] * 9)}, 4, "at most 8 sizes"),
        # rejected by the library, too
        ({"a": entry(0, 4), "b": entry(2, 6)}, 6, "overlap"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "overlap or hole"),
        ({"a": entry(4, 8)}, 8, "overlap or hole"),
        ({"a": entry(4, 0)}, 4, "do not fit"),
        ({"a": entry(-4, 0)}, 4, "begins at -4"),
        ({"a": entry(0, 8)}, 8, "8 bytes of data do not fit"),
        ({"a": entry()}, 5, "holds 5 bytes of data, the header describes 4: something was appended"),
        ({"a": entry()}, 3, "it is truncated, download or save it again"),
        ({"a": entry(0, 2**40, shape=(2**20, 2**18))}, 4, "274877906944 elements, limit"),
        ({"a": entry(0, 0, shape=(0, 2**31 + 1))}, 0, "to 2147483648"),
        ({"a": entry(0, 4, shape=(-1, -1))}, 4, "sizes from 0"),
        ({"a": entry(4, 0, "F31"), "b": entry(0, 4)}, 4, "do not fit"),
        ({"a": entry(0, 8, "F31")}, 4, "holds 4 bytes of data"),
        ({"a": entry(0, 3, "F4", (5,))}, 3, "do not fit"),
        ({"a": entry(dtype="\x1b[31m")}, 4, "is no name of a type"),
        ({"a": entry(dtype="F" * 99)}, 4, "is no name of a type"),
        ({"a": entry(dtype=["F32"])}, 4, "dtype"),
        ({"a": entry(shape=(True,))}, 4, "shape"),
        ({"a": entry() | {"extra": 1}}, 4, "exactly dtype"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, 4, "two integers"),
        ({"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}, 4, "shape"),
        ({"a": entry(), "__metadata__": {"format": 1}}, 4, "__metadata__"),
        (b'{"a": {"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', 4, "not an integer"),
        (b'[{"a": 1}]', 0, "does not start with"),
        (b"{" + b"[" * 100_000, 0, "opening brackets"),
    ],
)
def test_hostile_headers(tmp_path, header, data, message):
    path = write_raw(tmp_path / "a.safetensors", header, bytes(data))
    with pytest.raises(InvalidInput, match=message):
        read_safetensors_header(path)


ODD_NAMES = ["../../x", "a\n", "é", "", "a:b", "a/b", "C:\\x", "\x1b[31mred", "n" * 1000, "__proto__"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_may_be_any_text(tmp_path, name):
    save_file({name: torch.ones(2), "w": torch.zeros(3)}, tmp_path / "model.safetensors")
    folder = SafetensorsFolder(tmp_path)
    assert set(folder) == {name, "w"} and folder["w"].shape == (3,) and folder[name].sum() == 2
    assert shown(name).isprintable() and len(shown(name)) <= 130


@pytest.mark.parametrize("dtype", ["F6_E2M3", "F6_E3M2", "F31", "Q4_K"])
def test_unknown_types_do_not_hide_their_neighbours(tmp_path, dtype):
    header = {"odd": entry(0, 3, dtype, (4,)), "good": entry(3, 7)}
    write_raw(tmp_path / "model.safetensors", header, b"abc" + struct.pack("<f", 2.5))
    folder = SafetensorsFolder(tmp_path)
    assert folder["good"].tolist() == [2.5] and folder.dtypes["odd"] == dtype
    with pytest.raises(UnreadableFormat, match=f"tensor odd is stored as {dtype}, which cannot be read"):
        folder["odd"]
    # Two files are told apart by what is stored, whatever it means.
    digest = tensor_set_digest(folder)
    write_raw(tmp_path / "model.safetensors", header, b"abd" + struct.pack("<f", 2.5))
    assert tensor_set_digest(SafetensorsFolder(tmp_path)) != digest


def test_empty_complex_and_packed_tensors_are_stored_and_have_a_digest(tmp_path):
    tensors = {
        "empty": torch.zeros(0),
        "empty rows": torch.zeros(3, 0, 2).half(),
        "complex": torch.tensor([1 + 2j, -1j]),
        "scale": torch.ones(3).to(torch.float8_e8m0fnu),
        "four": torch.arange(8, dtype=torch.uint8).reshape(4, 2).view(torch.float4_e2m1fn_x2),
        "broken": torch.tensor([float("nan"), 1.0]),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    folder = SafetensorsFolder(tmp_path)
    assert folder["empty rows"].shape == (3, 0, 2) and folder["complex"][0] == 1 + 2j
    assert folder["four"].dtype == torch.float4_e2m1fn_x2 and folder.shapes["four"] == (4, 4)
    assert tensor_set_digest(folder) == tensor_set_digest(tensors)
    assert named_tensors_digest(folder) == named_tensors_digest(tensors)
    with pytest.raises(InvalidInput, match="tensor x .*complex128.* has no digest"):
        tensor_set_digest({"x": torch.zeros(1, dtype=torch.complex128)})


def test_huge_header_is_refused_unread(tmp_path):
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as file:  # sparse: 99 MB of header, nearly nothing on disk
        file.write(struct.pack("<Q", 99_000_000) + b"{}")
        file.truncate(8 + 99_000_000)
    start = time.process_time()
    with pytest.raises(InvalidInput, match="announces a header of 99000000 bytes"):
        read_safetensors_header(path)
    assert time.process_time() - start < 0.1
    assert path.stat().st_size == 99_000_008


@pytest.mark.parametrize("size", [0, 5, 8, 50, -1])
def test_truncated_files(tmp_path, size):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InvalidInput, match="truncated|does not start"):
        read_safetensors_header(path)


def test_any_flipped_header_bit_gives_a_file_or_invalid_input(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"conv.weight": torch.ones(2, 3), "steps": torch.tensor(1)}, path)
    raw = path.read_bytes()
    refused = 0
    for position in range(8 * (len(raw) - 32)):  # all of the length and the header, not the 32 bytes of data
        edited = bytearray(raw)
        edited[position // 8] ^= 1 << position % 8
        path.write_bytes(edited)
        try:
            list(SafetensorsFolder(path).items())
        except InvalidInput:
            refused += 1
    assert refused > 800


def test_largest_file_is_an_argument(tmp_path):
    save_file({"a": torch.zeros(100)}, tmp_path / "a.safetensors")
    with pytest.raises(InvalidInput, match="limit 400"):
        read_safetensors_header(tmp_path / "a.safetensors", max_bytes=400)


# --- folders ----------------------------------------------------------------------------------------------------


TENSORS = {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.bfloat16), "c": torch.tensor(3)}


def save_sharded(folder, weight_map=None):
    save_file({"a": TENSORS["a"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": TENSORS["b"], "c": TENSORS["c"]}, folder / "model-00002-of-00002.safetensors")
    if weight_map is None:
        weight_map = dict(zip("abc", [f"model-0000{i}-of-00002.safetensors" for i in (1, 2, 2)], strict=True))
    index = {"metadata": {"total_size": 32.0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def assert_holds_tensors(folder):
    assert set(folder) == set(TENSORS) and len(folder) == 3
    assert "a" in folder and "z" not in folder
    for name, tensor in TENSORS.items():
        assert folder[name].dtype == tensor.dtype and torch.equal(folder[name], tensor)
    assert folder.shapes == {"a": (4,), "b": (2, 2), "c": ()}
    assert folder.dtypes == {"a": "F32", "b": "BF16", "c": "I64"}
    with pytest.raises(KeyError):
        folder["z"]


def test_file_folder_shards_and_index_read_alike(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert_holds_tensors(SafetensorsFolder(tmp_path / "model.safetensors"))
    assert_holds_tensors(SafetensorsFolder(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    save_sharded(tmp_path)
    assert_holds_tensors(SafetensorsFolder(tmp_path))
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_holds_tensors(SafetensorsFolder(tmp_path))


@posix_only
def test_hub_cache_layout_of_symlinks(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file(TENSORS, tmp_path / "blobs" / "0123abcd")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(tmp_path / "blobs" / "0123abcd")
    assert_holds_tensors(SafetensorsFolder(tmp_path / "snapshot"))


def test_membership_and_shapes_read_no_data(tmp_path, monkeypatch):
    save_file(TENSORS, tmp_path / "model.safetensors")
    folder = SafetensorsFolder(tmp_path)
    monkeypatch.setattr(SafetensorsFolder, "stored", lambda *_: pytest.fail("read tensor data"))
    assert "a" in folder and list(folder) and folder.shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(tmp_path, dtype, value):
    bad = torch.tensor([1.0, value]).to(dtype)
    save_file({"good": torch.ones(2), "bad": bad}, tmp_path / "model.safetensors")
    folder = SafetensorsFolder(tmp_path)
    assert torch.equal(folder["good"], torch.ones(2))
    with pytest.raises(InvalidInput, match="tensor bad has NaN or infinite values"):
        folder["bad"]


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..safetensors",
        "a..safetensors",
        "x.bin",
        7,
    ],
)
def test_shard_names_are_not_paths(tmp_path, name):
    save_sharded(tmp_path, {"a": name})
    save_file({"a": torch.ones(1)}, tmp_path.parent / "outside.safetensors")
    with pytest.raises(InvalidInput, match="is not a plain .safetensors file name"):
        SafetensorsFolder(tmp_path)


def test_missing_shards_and_a_careless_index(tmp_path):
    save_sharded(tmp_path, {"a": "model-00009-of-00009.safetensors"})
    with pytest.raises(
        InvalidInput, match="a part of the model is missing .model-00009-of-00009.safetensors.: download it again"
    ):
        SafetensorsFolder(tmp_path)
    # An index that forgets a tensor, and one that puts it elsewhere: what the files hold counts.
    for weight_map in ({"a": 1, "b": 2}, {"a": 2, "b": 2, "c": 1}):
        names = {name: f"model-0000{shard}-of-00002.safetensors" for name, shard in weight_map.items()}
        save_sharded(tmp_path, names)
        assert_holds_tensors(SafetensorsFolder(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(InvalidInput, match="weight_map of model.safetensors.index.json must map"):
        SafetensorsFolder(tmp_path)


def test_a_tensor_in_two_shards(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "y.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "z.safetensors")
    folder = SafetensorsFolder(tmp_path)
    assert folder["b"].sum() == 2  # nobody asks for the other one
    with pytest.raises(UnreadableFormat, match="tensor a is in x.safetensors and y.safetensors"):
        folder["a"]
    # With an index there is no doubt.
    index = {"weight_map": {"a": "y.safetensors", "b": "z.safetensors", "c": "x.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert SafetensorsFolder(tmp_path)["a"] == 0


def test_size_limit_counts_all_shards(tmp_path):
    save_sharded(tmp_path)
    sizes = [file.stat().st_size for file in tmp_path.glob("*.safetensors")]
    assert len(SafetensorsFolder(tmp_path, max_bytes=sum(sizes))) == 3
    with pytest.raises(InvalidInput, match="model-00002.*limit"):
        SafetensorsFolder(tmp_path, max_bytes=sum(sizes) - 1)


def test_tensor_limit_counts_all_shards(tmp_path):
    for shard in "xy":
        header = {f"{shard}{i}": entry(i, i + 1, "U8") for i in range(10_001)}
        write_raw(tmp_path / f"{shard}.safetensors", header, bytes(10_001))
    assert len(SafetensorsFolder(tmp_path / "x.safetensors")) == 10_001
    with pytest.raises(InvalidInput, match="holds 20002 tensors, limit 20000"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.pth", "epoch.ckpt"])
def test_pickled_weights_are_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InvalidInput, match=f"{name} is pickled, and reading a pickle can run code"):
            SafetensorsFolder(path)


def test_folder_without_weights(tmp_path):
    with pytest.raises(InvalidInput, match="is an empty folder; expected a model in safetensors"):
        SafetensorsFolder(tmp_path)
    with pytest.raises(InvalidInput, match="missing: cannot be opened"):
        SafetensorsFolder(tmp_path / "missing")


def test_a_file_changed_behind_our_back(tmp_path):
    save_file({"a": torch.ones(100)}, tmp_path / "model.safetensors")
    folder = SafetensorsFolder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InvalidInput, match="tensor a cannot be read"):
        folder["a"]


# --- digest -----------------------------------------------------------------------------------------------------


def test_digest_ignores_names_order_shards_and_metadata(tmp_path):
    digest = tensor_set_digest(TENSORS)
    save_file({f"module.{name}": TENSORS[name] for name in "cba"}, tmp_path / "x.safetensors", {"note": "hello"})
    assert tensor_set_digest(load_file(tmp_path / "x.safetensors")) == digest
    (tmp_path / "sharded").mkdir()
    save_sharded(tmp_path / "sharded")
    assert tensor_set_digest(SafetensorsFolder(tmp_path / "sharded")) == digest


def test_digest_sees_every_change():
    base = {"a": torch.zeros(2, 3), "b": torch.zeros(6)}
    flipped = torch.zeros(6)
    flipped[3] = -0.0
    others = [
        {"a": base["a"].half(), "b": base["b"]},
        {"a": base["a"].T.contiguous(), "b": base["b"]},
        {"a": base["a"], "b": flipped},
        {"a": base["a"]},
        base | {"c": torch.zeros(6)},
        {},
    ]
    assert len({tensor_set_digest(tensors) for tensors in [base, *others]}) == 7


def test_digest_vector():
    """Independent of torch: anybody can compute it from the bytes of the file."""
    import hashlib

    leaves = [
        hashlib.sha256(b"F32:2\n" + struct.pack("<2f", 1.0, -2.0)).digest(),
        hashlib.sha256(b"I64:\n" + struct.pack("<q", 5)).digest(),
        hashlib.sha256(b"BF16:1,1\n" + b"\x80\x3f").digest(),
    ]
    tensors = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor(5), "c": torch.ones(1, 1, dtype=torch.bfloat16)}
    assert tensor_set_digest(tensors) == hashlib.sha256(b"".join(sorted(leaves))).hexdigest()
    transposed = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T.requires_grad_()
    assert tensor_set_digest({"t": torch.arange(8.0)[::2]}) == tensor_set_digest({"t": torch.arange(0.0, 8.0, 2.0)})
    assert tensor_set_digest({"t": transposed}) == tensor_set_digest({"t": transposed.detach().contiguous()})


def test_every_declared_dtype_exists_in_torch(tmp_path):
    for name, (size, torch_name) in serialization.DTYPES.items():
        tensor = torch.ones(3).to(vars(torch)[torch_name])
        save_file({"a": tensor}, tmp_path / "a.safetensors")
        folder = SafetensorsFolder(tmp_path / "a.safetensors")
        assert folder.dtypes["a"] == name and tensor.element_size() == size
        assert folder["a"].dtype == tensor.dtype
        assert tensor_set_digest(folder) == tensor_set_digest({"x": tensor})
