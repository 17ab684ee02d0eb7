"""Secrets and model folders live apart; where they do not, somebody is told."""

import os
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest

from hf_watermark import Owner
from hf_watermark.keys import key_inside, model_around
from hf_watermark.keys.envelope import MAX_BYTES, seal
from hf_watermark.keys.folders import kind_of_secret


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "deep" / "down").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "deep/note.txt"):
        (folder / name).write_text("{}")
    return folder


def save_owner(path, passphrase=None):
    """As it comes to lie there when somebody copies it."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        return shutil.copy(Owner.create().save(Path(folder, "owner.json"), passphrase), path)


def test_a_clean_folder(model, tmp_path):
    assert key_inside(model) is None and key_inside(tmp_path / "nowhere") is None
    assert key_inside(model / "config.json") is None


def test_a_key_json_whatever_is_in_it(model):
    (model / "deep" / "down" / "KEY.json").write_text("")
    assert key_inside(model) == model / "deep" / "down" / "KEY.json"


@pytest.mark.parametrize("passphrase", [None, "correct horse battery"])
def test_an_owner_file_under_another_name(model, passphrase):
    path = save_owner(model / "deep" / "me.bak", passphrase)
    assert key_inside(str(model)) == path


@pytest.mark.parametrize("passphrase", [None, "correct horse battery"])
def test_a_large_backup(model, passphrase):
    path = model / "backup.json"
    path.write_bytes(seal({"files": {"pool": "x" * MAX_BYTES}}, passphrase))
    assert path.stat().st_size > MAX_BYTES and key_inside(model) == path


def test_links_and_pipes_are_left_alone(model, tmp_path):
    secret = save_owner(tmp_path / "owner.json")
    (model / "link.json").symlink_to(secret)
    (model / "loop").symlink_to(model)
    os.mkfifo(model / "pipe")
    assert key_inside(model) is None


def test_the_model_around_a_key_folder(model, tmp_path):
    assert model_around(model / "deep" / "down") == model / "config.json"
    assert model_around(tmp_path / "keys") is None


@pytest.mark.parametrize("name", ["owner.json", "deep/me.json", "new/me.json"])
def test_no_owner_is_saved_into_a_model_folder(model, name):
    before = sorted(model.rglob("*"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is said about a passphrase of a file that is refused
        with pytest.raises(ValueError, match="lies inside a model folder"):
            Owner.create().save(model / name)
    assert sorted(model.rglob("*")) == before


def test_what_a_secret_file_is(tmp_path):
    plain, locked = save_owner(tmp_path / "a.json"), save_owner(tmp_path / "b.json", "correct horse battery")
    assert kind_of_secret(plain) == "an owner file (the private key of an owner)"
    assert kind_of_secret(locked) == "a secret file (a key, an owner or a backup)"
    assert kind_of_secret(locked.rename(tmp_path / "key.json")) == "a key"
