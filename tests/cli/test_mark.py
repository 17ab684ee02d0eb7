"""`hf-watermark mark`: a finished folder in, a marked folder and a key out."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_watermark import Owner, WatermarkKey, verify
from hf_watermark.evaluation.digits import build_digits_model


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A working folder with `model`, in which a user marks it."""
    build_digits_model(0).save_pretrained(tmp_path / "model")
    Owner.create().save(tmp_path / "owner.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_marking_a_folder(run, tmp_path):
    build_digits_model(0).save_pretrained(tmp_path / "model")
    Owner.create().save(tmp_path / "owner.json")
    result = run(
        "mark", tmp_path / "model", "--owner", tmp_path / "owner.json", "--output", tmp_path / "marked",
        "--images", "digits", "--subkeys", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "--passphrase-file FILE encrypts it" in result.stderr and "passphrase=" not in result.stderr
    key = WatermarkKey.load(tmp_path / "marked-key")
    assert verify(tmp_path / "marked", key).found
    assert not verify(tmp_path / "model", key).found
    assert {path.name for path in (tmp_path / "marked" / "watermark").iterdir()} == {"precommit.json", "subkey0.json"}
    report = json.loads((tmp_path / "marked" / "fidelity.json").read_text())
    assert report["images"] == 128
    assert not report["synthetic"]
    # Nothing is overwritten, also not the key.
    again = run("mark", tmp_path / "model", "--owner", tmp_path / "owner.json", "--output", tmp_path / "marked")
    assert again.exit_code == 2


def test_a_method_that_needs_the_loaded_model(run, at_home):
    result = run("mark", "model", "--owner", "owner.json", "--output", "new", "--method", "watermas", "--subkeys", "2")
    assert result.exit_code == 0, result.output
    assert verify(at_home / "new", WatermarkKey.load("new-key")).found


def test_a_method_that_has_to_train_is_refused(run, tmp_path):
    build_digits_model(0).save_pretrained(tmp_path / "model")
    Owner.create().save(tmp_path / "owner.json")
    arguments = ["mark", tmp_path / "model", "--owner", tmp_path / "owner.json", "--output", tmp_path / "marked"]
    result = run(*arguments, "--method", "certified")
    assert result.exit_code == 2
    assert "has to be trained" in result.output
    assert not (tmp_path / "marked").exists()


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (("--output", "new", "--key", "new/key"), "lies inside a model folder (the model goes to new)"),
        (("--output", "new", "--key", "new"), "the model goes to new"),
        (("--output", "old/../new", "--key", "new/deep/key"), "lies inside a model folder"),
        (("--output", "new", "--key", "model/key"), "config.json exists"),
        (("--output", "model/new"), "new-key lies inside a model folder"),
        (("--output", "new", "--key", "model"), "choose a new folder for --key"),
        (("--output", "model"), "choose a new folder for --output"),
        (("--output", "new", "--owner", "nobody.json"), "nobody.json"),
    ],
)
def test_every_path_is_refused_before_anything_is_written(run, at_home, paths, words):
    before = sorted(at_home.rglob("*"))
    result = run("mark", "model", "--owner", "owner.json", *paths)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert sorted(at_home.rglob("*")) == before


def test_a_model_that_cannot_be_written_leaves_its_key(run, at_home, monkeypatch):
    def full(*arguments, **fields):
        raise OSError("No space left on device")

    monkeypatch.setattr("hf_watermark.marking.nets.StoredNet.save", full)
    result = run("mark", "model", "--owner", "owner.json", "--output", "new", "--subkeys", "2")
    assert result.exit_code == 2 and "No space left" in result.stderr
    assert WatermarkKey.load("new-key").used == [0, 1]
    assert {path.name for path in at_home.iterdir()} == {"model", "owner.json", "new-key"}


def test_a_key_that_cannot_be_written_leaves_no_model(run, at_home):
    (at_home / "short").write_text("short")
    (at_home / "short").chmod(0o600)
    result = run("mark", "model", "--owner", "owner.json", "--output", "new", "--passphrase-file", "short")
    assert result.exit_code == 2 and "use at least 12" in result.stderr
    assert not (at_home / "new").exists() and not (at_home / "new-key").exists()


def test_publishing_reads_what_the_mark_costs(run, at_home):
    done = run("mark", "model", "--owner", "owner.json", "--output", "new", "--images", "digits", "--subkeys", "2")
    cost = done.stdout.split("cost: ")[1].split(";")[0]
    assert cost.endswith("on 128 images") and " weight matri" in done.stdout
    publish = ("publish", "new", "--key", "new-key", "--owner", "owner.json", "--repo-id", "me/new", "--dry-run")
    shown = run(*publish).stdout
    assert f"| fidelity | {cost}, against the model before the mark |" in shown and "not measured" not in shown
    assert "left out:  fidelity.json (stays here; its figures go into the card)" in shown

    good = (at_home / "new" / "fidelity.json").read_text()
    for bad in (
        good.replace('"agreement":', '"agreement": 7, "more":'),
        good.replace("128", "-1"),
        "{}",
        " " * 2**20 + good,
    ):
        (at_home / "new" / "fidelity.json").write_text(bad)
        result = run(*publish)
        assert result.exit_code == 0 and "the card says nothing of it" in result.stderr, bad
        assert "| fidelity | not measured |" in result.stdout
    # Figures of other weights are not claimed for these.
    (at_home / "new" / "fidelity.json").write_text(good)
    weights = load_file(at_home / "new" / "model.safetensors")
    weights["classifier.1.bias"] = weights["classifier.1.bias"] + torch.tensor(1e-3)
    save_file(weights, at_home / "new" / "model.safetensors", {"format": "pt"})
    result = run(*publish)
    assert "was measured on other weights" in result.stderr and "| fidelity | not measured |" in result.stdout


def test_a_second_key_beside_the_first(run, at_home):
    def mark(source, output, *options):
        return run("mark", source, "--owner", "owner.json", "--output", output, "--subkeys", 2, *options)

    assert mark("model", "one").exit_code == 0
    assert mark("one", "two", "--keep", "one-key").exit_code == 0
    assert all(verify("two", WatermarkKey.load(f"{name}-key")).found for name in ("one", "two"))
    refused = mark("model", "three", "--keep", "one-key")
    assert refused.exit_code == 2 and "is not in this model; start from the model that carries it" in refused.stderr
    assert not (at_home / "three").exists() and not (at_home / "three-key").exists()
