"""`hf-watermark owner create | show`."""

import os
import stat
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from hf_watermark import Owner
from hf_watermark.cli import passphrase
from hf_watermark.cli.main import app


WORDS = "correct horse battery"


@pytest.fixture
def words_file(tmp_path):
    file = tmp_path / "words"
    file.write_text(WORDS + "\n")
    file.chmod(0o600)
    return file


def test_create_and_show_with_a_passphrase_file(run, tmp_path, words_file):
    path = tmp_path / "me" / "owner.json"
    created = run("owner", "create", "--path", path, "--passphrase-file", words_file)
    assert created.exit_code == 0
    owner = Owner.load(path, WORDS)
    assert owner.fingerprint in created.stdout and owner.public_key.hex() in created.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shown = run("owner", "show", "--path", path, "--passphrase-file", words_file)
    assert shown.exit_code == 0
    assert shown.stdout.splitlines() == created.stdout.splitlines()[1:]


def test_passphrase_is_typed_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(passphrase, "can_ask", lambda: True)
    path = tmp_path / "owner.json"
    result = CliRunner().invoke(app, ["owner", "create", "--path", str(path)], input=f"{WORDS}\n{WORDS}\n")
    assert result.exit_code == 0
    assert WORDS not in result.output
    result = CliRunner().invoke(app, ["owner", "show", "--path", str(path)], input=f"{WORDS}\n")
    assert Owner.load(path, WORDS).fingerprint in result.stdout


def test_end_of_input_at_the_prompt_is_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(passphrase, "can_ask", lambda: True)
    result = CliRunner().invoke(app, ["owner", "create", "--path", str(tmp_path / "owner.json")], input="")
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_passphrase_from_a_descriptor_and_the_default_path(tmp_path):
    read, write = os.pipe()
    os.write(write, WORDS.encode() + b"\n")
    os.close(write)
    command = [sys.executable, "-m", "hf_watermark.cli.main", "owner", "create", "--passphrase-fd", str(read)]
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(command, pass_fds=[read], env=environment, capture_output=True, text=True)
    os.close(read)
    assert (done.returncode, done.stderr) == (0, "")
    assert Owner.load(tmp_path / "hf_watermark" / "owner.json", WORDS).fingerprint in done.stdout


def test_without_passphrase_only_on_request(run, refused, tmp_path):
    path = tmp_path / "owner.json"
    assert "--no-passphrase" in refused("owner", "create", "--path", path)
    result = run("owner", "create", "--path", path, "--no-passphrase")
    assert result.exit_code == 0
    assert "not encrypted" in result.stdout
    assert run("owner", "show", "--path", path).exit_code == 0


def test_an_existing_file_is_never_overwritten(refused, tmp_path):
    path = tmp_path / "owner.json"
    path.write_text("precious")
    assert "owner.json exists" in refused("owner", "create", "--path", path, "--no-passphrase")


def test_bad_passphrases(refused, tmp_path, words_file):
    path = tmp_path / "owner.json"
    words_file.write_text("short\n")
    assert "5 characters" in refused("owner", "create", "--path", path, "--passphrase-file", words_file)
    words_file.write_bytes(b"\xff\xfe not text\n")
    assert "not UTF-8" in refused("owner", "create", "--path", path, "--passphrase-file", words_file)
    words_file.write_text("\n")
    assert "holds no passphrase" in refused("owner", "create", "--path", path, "--passphrase-file", words_file)
    words_file.chmod(0o644)
    assert "chmod 600" in refused("owner", "create", "--path", path, "--passphrase-file", words_file)
    both = ["--no-passphrase", "--passphrase-fd", "99"]
    assert "Bad file descriptor" in refused("owner", "create", "--path", path, *both)


def test_show_refuses_what_is_no_owner(refused, tmp_path, shop):
    missing = refused("owner", "show", "--path", tmp_path / "missing.json")
    assert (
        "missing.json: no such owner file; give --path FILE, or make one with `hf-watermark owner create`" in missing
    )
    assert "not an owner" in refused("owner", "show", "--path", shop / "keys" / "open" / "key.json")


def test_commands_that_need_an_owner_say_how_to_get_one(refused, run, tmp_path, shop, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    command = ("publish", shop / "marked", "--key", shop / "keys" / "open", "--repo-id", "me/model", "--dry-run")
    run("owner", "create", "--path", tmp_path / "me" / "owner.json", "--no-passphrase")
    for given in ((), ("--owner", tmp_path / "nobody.json")):
        result = run(*command, *given)
        assert (
            result.exit_code == 2
            and "give --owner FILE, or make one with `hf-watermark owner create`" in result.stderr
        )
    result = run(*command, "--owner", tmp_path / "me")
    assert result.exit_code == 2 and f"is a folder; give --owner {tmp_path / 'me' / 'owner.json'}" in result.stderr
