"""A key folder goes into one encrypted file and comes back (PROTOCOL.md §1.2, D4)."""

import json
import shutil
import stat

import pytest
from test_watermark_key import assert_same, make_key
from typer.testing import CliRunner

from hf_watermark import InvalidInput, WatermarkKey
from hf_watermark.cli.main import app
from hf_watermark.keys import WrongPassphrase, burn, burnt_subkeys, envelope, export_key, import_key
from hf_watermark.keys.envelope import seal, unseal


PASSPHRASE, BACKUP = "correct horse battery", "another long passphrase"


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(envelope, "ARGON2", {"name": "argon2id", "memory_kib": 8, "iterations": 1, "lanes": 1})


@pytest.fixture
def folder(owner, tmp_path):
    """A key with source images, a timestamp over its precommit, and one sub-key that was opened."""
    folder = make_key(owner).bind_beacon(b"\x05" * 32, "drand round 5").save(tmp_path / "keys", PASSPHRASE)
    (folder / "precommit.0.tsr").write_bytes(b"\x30\x80token")
    burn(folder, 1, "court")
    return folder


def test_what_comes_back_is_what_was_there(folder, tmp_path):
    before = WatermarkKey.load(folder, PASSPHRASE)

    backup = export_key(folder, tmp_path / "backup.json", BACKUP, PASSPHRASE)
    shutil.rmtree(folder)  # the disk is lost
    restored = import_key(backup, folder, BACKUP, PASSPHRASE)

    assert_same(WatermarkKey.load(restored, PASSPHRASE), before)
    assert burnt_subkeys(restored) == [1], "a restored key must not open the same sub-key again"
    assert (restored / "precommit.0.tsr").read_bytes() == b"\x30\x80token"
    assert stat.S_IMODE(restored.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (backup, *restored.iterdir())} == {0o600}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_backup_is_encrypted_whatever_the_key_folder_is(owner, tmp_path):
    key = make_key(owner)
    with pytest.warns(UserWarning, match="without a passphrase"):
        key.save(tmp_path / "open")
    raw = export_key(tmp_path / "open", tmp_path / "backup.json", BACKUP).read_bytes()
    assert key.seed not in raw and key.seed.hex().encode() not in raw and b"pool" not in raw
    with pytest.raises(ValueError, match="use at least 12"):
        export_key(tmp_path / "open", tmp_path / "weak.json", "short")
    with pytest.raises(WrongPassphrase):
        import_key(tmp_path / "backup.json", tmp_path / "restored", PASSPHRASE)
    assert not (tmp_path / "weak.json").exists() and not (tmp_path / "restored").exists()
    with pytest.warns(UserWarning, match="restored/key.json is stored without a passphrase"):
        import_key(tmp_path / "backup.json", tmp_path / "restored", BACKUP)


def test_nothing_is_overwritten_and_nothing_lies_in_a_model(folder, tmp_path):
    backup = export_key(folder, tmp_path / "backup.json", BACKUP, PASSPHRASE)
    with pytest.raises(FileExistsError):
        export_key(folder, backup, BACKUP, PASSPHRASE)
    with pytest.raises(FileExistsError, match="exists and is left as it is"):
        import_key(backup, folder, BACKUP, PASSPHRASE)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="lies inside a model folder"):
        import_key(backup, tmp_path / "model" / "keys", BACKUP, PASSPHRASE)


def test_damaged_keys_are_not_backed_up(folder, tmp_path):
    (folder / "pool.safetensors").unlink()
    with pytest.raises(InvalidInput, match="the triggers of `function_coupled` are made from it"):
        export_key(folder, tmp_path / "backup.json", BACKUP, PASSPHRASE)
    assert not (tmp_path / "backup.json").exists()


def edited(backup, change):
    payload = unseal(backup.read_bytes(), BACKUP)
    change(payload)
    backup.write_bytes(seal(payload, BACKUP))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.update(kind="owner"), "holds a 'owner', not the backup"),
        (lambda p: p.pop("key"), "not the backup of a key"),
        (lambda p: p.pop("files"), "lists no files"),
        (lambda p: p["files"].update({"../escaped": ""}), "belongs into no key folder"),
        (lambda p: p["files"].update({"key.json": ""}), "belongs into no key folder"),
        (lambda p: p["files"].update({"burnt.json": "?"}), "not base64"),
        (lambda p: p["files"].update({"burnt.json": 3}), "not base64"),
        (lambda p: p["files"].pop("pool.safetensors"), "the triggers of `function_coupled`"),
        (lambda p: p["key"].update(seed="00" * 32), "signature does not fit"),
    ],
)
def test_edited_backups_leave_nothing_behind(folder, tmp_path, change, words):
    backup = export_key(folder, tmp_path / "backup.json", BACKUP, PASSPHRASE)
    edited(backup, change)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(InvalidInput, match=words):
        import_key(backup, tmp_path / "restored", BACKUP, PASSPHRASE)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_the_commands(folder, tmp_path):
    def run(*arguments, status=0):
        result = CliRunner().invoke(app, [str(argument) for argument in ("key", *arguments)])
        assert result.exit_code == status, result.output
        return result

    secrets = {"key": PASSPHRASE, "backup": BACKUP}
    for name, words in secrets.items():
        (tmp_path / name).write_text(words)
        (tmp_path / name).chmod(0o600)
    opened = ("--key", folder, "--passphrase-file", tmp_path / "key")
    backup, restored = tmp_path / "backup.json", tmp_path / "restored"
    assert "nobody can type a passphrase here" in run("export", *opened, "--output", backup, status=2).stderr
    with_backup = ("--backup-passphrase-file", tmp_path / "backup")
    assert "whoever has this file" in run("export", *opened, "--output", backup, *with_backup).stdout
    assert "give --backup-passphrase-file" in run("import", backup, "--key", restored, status=2).stderr
    run("import", backup, "--key", restored, *with_backup)
    assert_same(WatermarkKey.load(restored, BACKUP), WatermarkKey.load(folder, PASSPHRASE))
    assert json.loads((restored / "burnt.json").read_text())["entries"][0]["nonce"] == "court"
    assert "exists and is left as it is" in run("import", backup, "--key", restored, *with_backup, status=2).stderr
