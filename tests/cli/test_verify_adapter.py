"""`hf-watermark verify` on adapters: alone, with `--base`, and a merged model beside its base."""

import json
from pathlib import Path

import pytest
from adapted import Adapted, bare, marked_adapter

from hf_watermark import Opening


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    made = marked_adapter("vit", tmp_path_factory.mktemp("adapter"))
    with pytest.warns(UserWarning, match="without a passphrase"):
        made.key.save(made.adapter.parent / "key")
    return made


def key_of(own: Adapted) -> Path:
    return own.adapter.parent / "key"


def test_the_three_forms(run, own):
    for suspect, options in (
        (own.adapter, []),
        (own.adapter, ["--base", own.base]),
        (own.merged, ["--base", own.base]),
    ):
        result = run("verify", suspect, "--key", key_of(own), *options)
        assert result.exit_code == 0, result.output
        assert "mark found" in result.stdout


def test_by_an_opening(run, own, tmp_path):
    Opening.of(own.key, 1).save(tmp_path / "subkey.json")
    result = run("verify", own.merged, "--opening", tmp_path / "subkey.json", "--base", own.base, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["log2_p"] <= -128


def test_a_merged_model_alone(run, own):
    result = run("verify", own.merged, "--key", key_of(own))
    assert result.exit_code == 3 and "(`base=`, --base)" in " ".join(result.stdout.split())


def test_another_base(run, own, tmp_path):
    bare("vit").init_weights()
    other = bare("vit")
    other.classifier.bias.data += 1
    other.save_pretrained(tmp_path / "other")
    result = run("verify", own.merged, "--key", key_of(own), "--base", tmp_path / "other")
    assert result.exit_code == 3 and "not the model that the key was made for" in " ".join(result.stdout.split())


def test_bad_input(run, own, tmp_path):
    for arguments, words in (
        ((own.merged, "--key", key_of(own), "--base", tmp_path / "nothing"), "is no folder"),
        ((own.merged, "--key", key_of(own), "--base", own.base, "--mirrored"), "leave out addresses and --mirrored"),
        (("https://example.com/x", "--key", key_of(own), "--base", own.base), "leave out addresses and --mirrored"),
    ):
        result = run("verify", *arguments)
        assert result.exit_code == 2 and words in " ".join(result.stderr.split()), result.output
