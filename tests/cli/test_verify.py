"""`hf-watermark verify`: exit statuses 0, 1 and 3, and what is printed. Status 2 is in test_verify_bad_input.py."""

import json
import subprocess
import sys

from typer.testing import CliRunner

from hf_watermark import Opening, WatermarkKey
from hf_watermark.cli import passphrase
from hf_watermark.cli.main import app


PASSPHRASE = "a long enough passphrase"
FIELDS = {
    "method", "verdict", "reason", "level", "matches", "trials", "log2_p", "log2_e", "null", "access", "bound_to_beacon",
    "looks", "warnings", "controls", "details", "parts", "basis", "subkey", "disclosed", "queries", "unusable_answers", "skipped",
}  # fmt: skip


def test_mark_found(run, shop):
    result = run("verify", shop / "marked", "--key", shop / "keys" / "open")
    assert result.exit_code == 0
    assert "greedy_residuals" in result.stdout and "256/256" in result.stdout
    assert "mark found: log2 p <= -256.0, level N" in " ".join(result.stdout.split())
    assert "shown no lower than -256" in " ".join(result.stdout.split())


def test_not_found(run, shop):
    result = run("verify", shop / "plain", "--key", shop / "keys" / "open")
    assert result.exit_code == 1
    assert "not found: log2 p" in result.stdout


def test_inconclusive(run, shop):
    result = run("verify", shop / "short", "--key", shop / "keys" / "short")
    assert result.exit_code == 3
    assert "inconclusive: log2 p = -64.0" in result.stdout


def test_looks_are_charged(run, shop):
    result = run("verify", shop / "short", "--key", shop / "keys" / "short", "--looks", 16, "--json")
    assert json.loads(result.stdout)["log2_p"] == -60


def test_mirrored_images_are_two_looks(run, shop):
    check = ["verify", shop / "both", "--key", shop / "keys" / "both", "--json"]
    plain, mirrored = (json.loads(run(*check, *option).stdout) for option in ([], ["--mirrored"]))
    assert (plain["looks"], mirrored["looks"]) == (1, 2)
    assert mirrored["details"]["queries"] == plain["details"]["queries"] > 0


def test_one_row_per_method(run, shop):
    result = run("verify", shop / "both", "--key", shop / "keys" / "both")
    assert result.exit_code == 0
    rows = [line.split("│") for line in result.stdout.splitlines() if line.startswith("│")]
    assert [(row[1].strip(), row[5].strip()) for row in rows] == [
        ("greedy_residuals", "mark found"),
        ("function_coupled", "not found"),
    ]


def test_json_in_another_process_is_pure_and_complete(shop):
    # The key of two methods: one of them fills the suspect into the owner's architecture, which makes transformers talk.
    command = ["verify", shop / "both", "--key", shop / "keys" / "both", "--json"]
    done = subprocess.run([sys.executable, "-m", "hf_watermark.cli.main", *command], capture_output=True, text=True)
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document.keys() == FIELDS
    assert all(part.keys() == FIELDS for part in document["parts"])
    assert document["verdict"] == "mark found"
    assert done.stdout.endswith("}\n")


def test_output_is_the_printed_evidence_and_never_overwritten(run, refused, shop, tmp_path):
    arguments = ["verify", shop / "marked", "--key", shop / "keys" / "open", "--json"]
    output = tmp_path / "evidence.json"
    result = run(*arguments, "--output", output)
    assert result.exit_code == 0
    written, printed = json.loads(output.read_text()), json.loads(result.stdout)
    assert written == printed
    assert "evidence.json exists" in refused(*arguments, "--output", output)
    assert "folder does not exist" in refused(*arguments, "--output", tmp_path / "no" / "evidence.json")


def test_opening(run, shop, tmp_path):
    opening = Opening.of(WatermarkKey.load(shop / "keys" / "open"), 0).save(tmp_path / "subkey0.json")
    assert run("verify", shop / "marked", "--opening", opening).exit_code == 0
    document = json.loads(opening.read_text())
    document["secret"] = "00" * 32
    opening.write_text(json.dumps(document))
    result = run("verify", shop / "marked", "--opening", opening)
    assert result.exit_code == 4
    assert "invalid claim: sub-key, methods and model record are not in the committed tree" in result.stdout


def test_passphrase_from_a_file(run, shop, tmp_path):
    file = tmp_path / "words"
    file.write_text(PASSPHRASE)
    file.chmod(0o600)
    result = run("verify", shop / "marked", "--key", shop / "keys" / "locked", "--passphrase-file", file)
    assert result.exit_code == 0


def test_passphrase_is_asked_for_an_encrypted_key_only(shop, monkeypatch):
    monkeypatch.setattr(passphrase, "can_ask", lambda: True)
    arguments = ["verify", str(shop / "marked"), "--json", "--key"]
    result = CliRunner().invoke(app, [*arguments, str(shop / "keys" / "locked")], input=PASSPHRASE + "\n")
    assert json.loads(result.stdout)["verdict"] == "mark found"
    assert "Passphrase" in result.stderr and PASSPHRASE not in result.output
    result = CliRunner().invoke(app, [*arguments, str(shop / "keys" / "open")])
    assert "Passphrase" not in result.stderr
