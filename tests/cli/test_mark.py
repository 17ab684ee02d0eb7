"""`hf-watermark mark`: a finished folder in, a marked folder and a key out."""

import json

from hf_watermark import Owner, WatermarkKey, verify
from hf_watermark.evaluation.digits import build_digits_model


def test_marking_a_folder(run, tmp_path):
    build_digits_model(0).save_pretrained(tmp_path / "model")
    Owner.create().save(tmp_path / "owner.json")
    result = run(
        "mark", tmp_path / "model", "--owner", tmp_path / "owner.json", "--output", tmp_path / "marked",
        "--images", "digits", "--subkeys", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
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


def test_a_method_that_has_to_train_is_refused(run, tmp_path):
    build_digits_model(0).save_pretrained(tmp_path / "model")
    Owner.create().save(tmp_path / "owner.json")
    arguments = ["mark", tmp_path / "model", "--owner", tmp_path / "owner.json", "--output", tmp_path / "marked"]
    result = run(*arguments, "--method", "certified")
    assert result.exit_code == 2
    assert "has to be trained" in result.output
    assert not (tmp_path / "marked").exists()
