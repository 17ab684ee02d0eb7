"""Which files of a model folder are published, and that nothing slips in under another name."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import shutil
import tarfile
import zipfile

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hf_watermark import InvalidInput
from hf_watermark.publishing import SecretFound, preview
from hf_watermark.publishing.contents import container
from hf_watermark.publishing.files import model_files


MODEL = {"config.json", "model.safetensors"}


@pytest.fixture
def copy(shop, tmp_path):
    """A folder with the marked model that a test may change."""
    return shutil.copytree(shop.folder, tmp_path / "model")


def image(kind: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, kind)
    return stream.getvalue()


def zipped(**entries: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("_", "."), content)
    return stream.getvalue()


def tarred(content: bytes = b"secret" * 100, form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        entry = tarfile.TarInfo("notes")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def old_tar() -> bytes:
    """As before POSIX: without the word `ustar`, known by its checksum alone."""
    raw = bytearray(tarred(form=tarfile.USTAR_FORMAT))
    raw[257:512] = bytes(255)
    raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + 8 * 32 + sum(raw[156:512]))
    return bytes(raw)


def tensors() -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, stream)
    return stream.getvalue()


ARCHIVES = {
    "zip": zipped(a=b"secret"),
    "gz": gzip.compress(b"secret"),
    "bz2": bz2.compress(b"secret"),
    "xz": lzma.compress(b"secret"),
    "tar": tarred(),
    "old tar": old_tar(),
    "7z": b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(40),
    "zst": b"\x28\xb5\x2f\xfd" + bytes(20),
    "rar": b"Rar!\x1a\x07\x01\x00" + bytes(20),
    "pickle": pickle.dumps({"a": "secret"}),
    "printable pickle": pickle.dumps({"a": "secret"}, protocol=0),
    "torch": tensors(),
}


def test_known_kinds(shop, copy):
    known = {
        "preprocessor_config.json": b"{}", "eval_results.json": b'{"eval_loss": NaN}', "LICENSE": b"Apache", "LICENSE.txt": b"Apache",
        "NOTICE": b"us", "labels.txt": "Maus\nM\u00f6we\n".encode(), "id2label.json": b"{}", "curve.png": image(), "photo.jpg": image("jpeg"),
        "figures/shown.png": image(),
    }  # fmt: skip
    for name, content in known.items():
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(content)
    (copy / "README.md").write_text("# Ours\n![a plot](figures/shown.png)\n")
    (copy / "figures" / "of-the-data.png").write_bytes(image())
    (copy / "sub").mkdir()
    for name in ("notes.txt", "trainer_state.json", "run.py", "plot.svg", "sub/config.json", "data.csv", "key2.JSON"):
        (copy / name).write_text("{}")
    (copy / "backup.ZIP").write_bytes(zipped(a=b"x"))
    (copy / "averaged.safetensors").write_bytes((copy / "model.safetensors").read_bytes())
    (copy / "link.txt").symlink_to(copy / "labels.txt")
    (copy / "more").symlink_to(copy / "figures")

    chosen = model_files(copy)

    assert set(chosen.files) == MODEL | known.keys()
    assert chosen.skipped == {
        "averaged.safetensors": "weights that the mark is not read from",
        "backup.ZIP": "an archive",
        "data.csv": "not a known kind of file",
        "figures/of-the-data.png": "an image that the card does not show",
        "key2.JSON": "not a known kind of file",
        "link.txt": "a link or no plain file",
        "more": "a link or no plain file",
        "notes.txt": "not a known kind of file",
        "plot.svg": "not a known kind of file",
        "run.py": "not a known kind of file",
        "sub/config.json": "in a sub-folder",
        "trainer_state.json": "not a known kind of file",
    }
    assert chosen.card is not None and "# Ours" in chosen.card
    result = preview(copy, "me/model", shop.key, include=["notes.txt", "./sub/config.json", "averaged.safetensors"])
    assert {"notes.txt", "sub/config.json", "averaged.safetensors"} <= result.files.keys()
    assert "notes.txt" not in result.skipped


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "LICENSE", "labels.txt", "plot.png", "README.md"])
def test_an_archive_under_a_known_name_is_refused(copy, kind, name):
    (copy / name).write_bytes(ARCHIVES[kind])
    with pytest.raises(InvalidInput, match=f"{name}: .*nothing was uploaded"):
        model_files(copy)


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_are_not_published_even_when_they_are_named(copy, kind):
    assert container_of(copy, ARCHIVES[kind]) is not None
    for name in ("notes", "backup.zip", "weights.pt"):
        (copy / name).write_bytes(ARCHIVES[kind])
        with pytest.raises(InvalidInput, match=f"{name}: .*archives and pickles are never published"):
            model_files(copy, [name])
        (copy / name).unlink()


def container_of(folder, content: bytes):
    path = folder / ".looked-at"
    path.write_bytes(content)
    return container(path)


def test_archives_behind_something_else(copy):
    import base64

    inner = zipped(key_json=b"x" * 500)
    for name, content in {
        "plot.png": image() + inner,
        "photo.jpg": image("jpeg") + inner + b"\xff\xd9",
        "LICENSE": b"Apache\n" + inner,
        "labels.txt": b"see " + base64.b64encode(zipped(a=bytes(range(256)) * 4)),
        "plot2.png": image()[:-12] + len(inner).to_bytes(4, "big") + b"prVt" + inner + bytes(4) + image()[-12:],
    }.items():
        (copy / name).write_bytes(content)
        with pytest.raises(InvalidInput, match=f"{name}: "):
            model_files(copy)
        (copy / name).unlink()
    (copy / "notes").write_bytes(b"Some notes\n" + inner)
    with pytest.raises(InvalidInput, match="notes: is a file with an archive inside"):
        model_files(copy, ["notes"])
    # The weights: a zip archive is read from its end, and a tensor may hold anything.
    raw = torch.frombuffer(bytearray(inner), dtype=torch.uint8)
    save_file({"a": torch.zeros(3), "z": raw}, copy / "model.safetensors")
    with pytest.raises(InvalidInput, match="model.safetensors: is .*archive.*; nothing was uploaded"):
        model_files(copy)


def test_plain_files_are_no_archives(copy):
    for content in (
        b"",
        b".",
        b"I am text.\n",
        "N\u00e4mlich.".encode(),
        image(),
        image("jpeg"),
        b"(c) us.",
        json.dumps([1]).encode(),
    ):
        assert container_of(copy, content) is None, content


def test_names_that_include_refuses(shop, copy, tmp_path):
    (tmp_path / "outside.txt").write_text("x")
    (copy / "link.txt").symlink_to(tmp_path / "outside.txt")
    (copy / "linked").symlink_to(tmp_path)
    (copy / "watermark").mkdir()
    for name in ("pool.safetensors", "burnt.json", "watermark/statement.json", "watermark/x.txt", "README.md"):
        (copy / name).write_text("{}")
    for name, reason in {
        "../outside.txt": "by its path inside the model folder",
        str(tmp_path / "outside.txt"): "by its path inside the model folder",
        "": "by its path inside the model folder",
        "missing.txt": "is no file in",
        "watermark": "is no file in",
        "link.txt": "but a link",
        "linked/outside.txt": "but a link",
        "watermark/x.txt": "written by publishing itself",
        "README.md": "written by publishing itself",
        "pool.safetensors": "belongs to a key folder",
        "burnt.json": "belongs to a key folder",
    }.items():
        with pytest.raises(InvalidInput, match=reason):
            model_files(copy, [name])


def test_a_link_is_no_card(shop, copy, tmp_path):
    (tmp_path / "private.txt").write_text("my diary")
    (copy / "README.md").symlink_to(tmp_path / "private.txt")
    assert model_files(copy).card is None
    assert preview(copy, "me/model", shop.key).card is None


def test_weights_that_are_read_but_not_published(copy):
    """A reader of the folder would take them for the model, and the mark would be read from what nobody gets."""
    (copy / "model.safetensors").rename(copy / "_model.safetensors")
    (copy / "plain.safetensors").write_bytes((copy / "_model.safetensors").read_bytes())
    with pytest.raises(InvalidInput, match="_model.safetensors: is a part of the model that is missing or never"):
        model_files(copy)
    (copy / "_model.safetensors").rename(copy / "pool.safetensors")
    with pytest.raises(InvalidInput, match="pool.safetensors: is a part of the model that is missing or never"):
        model_files(copy)
    (copy / "pool.safetensors").unlink()
    assert set(model_files(copy).files) == {"config.json", "plain.safetensors"}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(InvalidInput, match=r"a part of the model is missing \(gone.safetensors\)"):
        model_files(copy)


def test_a_forged_timestamp_in_the_folder(shop, copy, tmp_path):
    (copy / "watermark").mkdir()
    token = copy / "watermark" / "precommit.0.tsr"
    for content in (b"plain", zipped(a=b"x")):
        token.write_bytes(content)
        with pytest.raises(InvalidInput, match="precommit.0.tsr: .*nothing was uploaded"):
            preview(copy, "me/model", shop.key)
    token.unlink()
    token.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"\x30\x00")
    with pytest.raises(InvalidInput, match="precommit.0.tsr: is a link"):
        preview(copy, "me/model", shop.key)


def test_a_secret_in_a_file_that_would_stay_at_home(shop, copy):
    """Another tool may upload the folder next time."""
    (copy / "log.txt").write_text(f"seed {shop.key.seed.hex()}")
    with pytest.raises(SecretFound, match="log.txt: holds the seed of the key"):
        preview(copy, "me/model", shop.key)
    (copy / "log.txt").unlink()
    shutil.copy(shop.folder.parent / "owner.json", copy / ".me.bak")
    with pytest.raises(SecretFound, match=".me.bak: holds (an owner file|a secret file)"):
        preview(copy, "me/model", shop.key)


@pytest.mark.parametrize(
    ("form", "reason"), [("zip", "names a key.json, so it may be a backup of the key"), ("tar", "holds a secret file")]
)
def test_an_archive_of_the_key_folder(shop, copy, tmp_path, form, reason):
    shutil.make_archive(str(copy / "backup"), form, shop.keys)
    with pytest.raises(SecretFound, match=f"backup.{form}: {reason}"):
        preview(copy, "me/model", shop.key)
    # Where the list of files is packed it cannot be read without opening the archive, which stays at home.
    (copy / f"backup.{form}").unlink()
    shutil.make_archive(str(copy / "backup"), "gztar", shop.keys)
    assert preview(copy, "me/model", shop.key).skipped == {"backup.tar.gz": "an archive"}
