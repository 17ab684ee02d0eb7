"""`benchmark`, `survival`, `calibrate` and `plan` as a user types them."""

import json
from pathlib import Path

import pytest

from hf_watermark.cli.benchmark import _words


TINY_YAML = """
name: tiny
seeds: [0]
backbones: {tiny: {preset: tiny_resnet}}
data:
  patterns:
    {source: synthetic, train_images: 120, test_images: 40, training: {epochs: 2, learning_rate: 3.0e-3, batch_size: 40}}
methods:
  greedy: {greedy_residuals: {bits: 64, subkeys: 1, group_size: 16}}
attacks:
  - attacks: {noise: {name: weight_noise}}
"""


def test_a_benchmark_writes_table_report_and_cards(run, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY_YAML)

    result = run("benchmark", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "out"))

    assert result.exit_code == 0, result.output
    assert {"results.parquet", "report.html", "model_cards"} <= {path.name for path in (tmp_path / "out").iterdir()}
    card = (tmp_path / "out" / "model_cards" / "tiny_patterns_greedy.md").read_text()
    assert "hf-watermark benchmark tiny.yaml --output out" in card and str(tmp_path) not in card


def test_the_command_in_a_card_says_which_data_it_takes():
    words = _words(Path("cifar.yaml"), Path("out"), ["cifar10=FOLDER"])

    assert " ".join(words) == "hf-watermark benchmark cifar.yaml --data cifar10=FOLDER --output out"


def test_benchmark_refuses_what_it_cannot_read(run, tmp_path):
    (tmp_path / "bad.yaml").write_text("name: [")

    missing = run("benchmark", str(tmp_path / "none.yaml"), "--output", str(tmp_path / "out"))
    malformed = run("benchmark", str(tmp_path / "bad.yaml"), "--output", str(tmp_path / "out"))

    assert missing.exit_code == malformed.exit_code == 2
    assert "cannot be opened" in missing.stderr and "no readable YAML" in malformed.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "greedy_residuals", "--rate", "0.8", "--target-p", "1e-9"], "146 bits per sub-key, 109 of them"),
        (["--method", "greedy_residuals", "--rate", "0.8", "--backbone", "small_resnet"], "312490 parameters"),
        (["--scan", "2500000", "--keys", "50"], "false alarms expected, of all looks ever, at most"),
    ],
)
def test_plan(run, arguments, words):
    result = run("plan", *arguments)

    assert result.exit_code == 0 and words in result.stdout


def test_plan_as_json(run):
    document = json.loads(run("plan", "--method", "usp", "--rate", "0.9", "--json").stdout)

    assert document["plan"]["needed"] <= document["plan"]["units"] and document["fidelity"]


def test_plan_needs_one_question(run):
    for arguments in ([], ["--method", "usp", "--scan", "5"], ["--method", "usp"]):
        result = run("plan", *arguments)
        assert result.exit_code == 2 and "exactly one" in result.stderr


def test_survival_refuses_data_without_a_rate(run, tmp_path):
    result = run("survival", "model", "--key", "key", "--data", "digits", "--output", str(tmp_path / "s.json"))

    assert result.exit_code == 2 and "--learning-rate" in result.stderr


def test_survival_of_a_marked_folder(run, marked_by, tmp_path):
    from hf_watermark import WatermarkKey

    marked = marked_by("greedy_residuals")
    WatermarkKey.load(marked.key_folder, "a long enough passphrase")
    secret = tmp_path / "secret"
    secret.write_text("a long enough passphrase\n")
    secret.chmod(0o600)

    output = tmp_path / "survival.json"
    arguments = ["--key", str(marked.key_folder), "--passphrase-file", str(secret), "--output", str(output)]
    result = run("survival", str(marked.output), *arguments)

    assert result.exit_code == 0, result.stderr
    assert "| prune 50 % | n/a |" in result.stdout
    assert len(json.loads(output.read_text())["rows"]) == 8


def test_calibrate_keeps_an_existing_file(run, tmp_path):
    (tmp_path / "t.json").write_text("mine")

    result = run("calibrate", "--output", str(tmp_path / "t.json"))

    assert result.exit_code == 2 and (tmp_path / "t.json").read_text() == "mine"
