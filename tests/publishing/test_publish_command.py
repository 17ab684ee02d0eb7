"""`publish --dry-run`, `--include` and `--license`, the metadata of the card, and `verify` where a key lies in a model folder."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import yaml
from commands import refused, run
from huggingface_hub import ModelCard
from timm.models import save_for_hf

from hf_watermark.publishing.card import NO_LICENSE, with_metadata
from hf_watermark.serialization import InvalidInput


@pytest.fixture
def copy(shop, tmp_path):
    return shutil.copytree(shop.folder, tmp_path / "model")


def options(shop):
    return ("--key", shop.keys, "--owner", shop.keys.parent / "owner.json", "--repo-id", "me/model")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_shows_files_and_card_and_does_nothing(hub, shop, copy, tmp_path, offline):
    (copy / "notes.txt").write_text("for me")
    (copy / "notes2.txt").write_text("for all")
    before = contents(tmp_path), contents(shop.keys)
    done = run("publish", copy, *options(shop), "--dry-run", "--include", "notes2.txt", "--license", "apache-2.0")
    assert hub.requests == [] and (contents(tmp_path), contents(shop.keys)) == before
    lines = done.stdout.splitlines()
    for name in ("README.md", "config.json", "model.safetensors", "notes2.txt", "watermark/statement.json"):
        assert any(line.startswith(f"would publish: {name} (") for line in lines), name
    assert "left out:  notes.txt (not a known kind of file)" in lines
    metadata = yaml.safe_load(done.stdout.split("---\n")[1])
    assert metadata["license"] == "apache-2.0" and metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "image-classification" and "hf-watermark" in metadata["tags"]
    assert "## Watermark" in done.stdout and done.stderr == f"Reading {copy} ...\n"


def test_a_dry_run_refuses_what_publishing_refuses(hub, shop, copy):
    from shops import small_model

    (copy / "backup.zip").write_bytes(b"PK\x03\x04")
    assert "archives and pickles are never published" in refused(
        "publish", copy, *options(shop), "--dry-run", "--include", "backup.zip"
    )
    small_model(seed=5).save_pretrained(copy)
    done = run("publish", copy, *options(shop), "--dry-run", status=1)
    assert "not published: not found" in done.stderr and done.stdout == "" and hub.requests == []


def test_what_is_published_is_what_the_dry_run_showed(hub, shop, copy):
    (copy / "notes.txt").write_text("for all")
    arguments = ("publish", copy, *options(shop), "--include", "notes.txt")
    shown = run(*arguments, "--dry-run")
    done = run(*arguments)
    names = {line.split()[2] for line in shown.stdout.splitlines() if line.startswith("would publish: ")}
    assert names == set(hub.files("me/model"))
    assert f"warning: {NO_LICENSE}" in done.stderr and f"warning: {NO_LICENSE}" in shown.stderr
    card = ModelCard.load("me/model")
    assert card.data.license is None and "license" not in card.data.to_dict()


def test_the_cards_license_stays_unless_another_is_given():
    written = "---\nlicense: mit\nlibrary_name: ours\n---\n# Ours\n"
    config = {"architectures": ["BeitForSemanticSegmentation"], "model_type": "beit"}
    text, warnings = with_metadata(written, config)
    data = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "ours", "image-segmentation")
    assert not warnings
    assert ModelCard(with_metadata(written, config, "apache-2.0")[0]).data.license == "apache-2.0"
    for odd in ("", "mit\ntags: x", "a b", "x" * 65):
        with pytest.raises(InvalidInput, match="is no identifier such as"):
            with_metadata(written, config, odd)


def test_the_library_is_that_which_wrote_the_config(tmp_path):
    save_for_hf(timm.create_model("resnet10t", num_classes=7), tmp_path, safe_serialization=True)
    known = {
        "timm": json.loads((tmp_path / "config.json").read_text()),
        "transformers": {"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"]},
    }
    for library, config in known.items():
        data = ModelCard(with_metadata("# x\n", config)[0]).data
        assert (data.library_name, data.pipeline_tag) == (library, "image-classification")
    data = ModelCard(with_metadata("# x\n", {})[0]).data
    assert data.library_name is None and data.pipeline_tag is None


def test_verify_warns_of_a_key_in_a_model_folder(shop, copy, tmp_path):
    quiet = run("verify", copy, "--key", shop.keys)
    assert quiet.stderr == f"Checking {copy} ...\n" and "secret" not in quiet.stdout
    shutil.copy(shop.keys.parent / "owner.json", copy / "me.bak")
    done = run("verify", copy, "--key", shop.keys, "--json")
    assert f"warning: {copy / 'me.bak'} is a secret inside the model folder" in done.stderr
    assert json.loads(done.stdout)["verdict"] == "mark found"
    done = run("verify", shop.folder, "--key", shop.keys, "--reference", copy)
    assert f"warning: {copy / 'me.bak'} is a secret inside" in done.stderr
    shutil.copytree(shop.keys, copy / "keys")
    done = run("verify", shop.folder, "--key", copy / "keys")
    assert f"warning: the key {copy / 'keys'} lies inside the model folder {copy}" in done.stderr
