"""What is pushed is what was verified: the mark is read from the files of the commit."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from shops import small_model
from test_trainer_push import make

from hf_watermark import InvalidInput, verify
from hf_watermark.claims import check
from hf_watermark.publishing import publish


@pytest.fixture
def copy(shop, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in shop.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def other_weights(folder):
    small_model(seed=5).save_pretrained(folder)


def test_weights_replaced_after_training_are_not_signed_for(hub, tmp_path, caplog):
    """An average, another run, or a checkpoint that somebody loaded: what was read after training says nothing about it."""
    trainer = make(tmp_path / "model")
    trainer.train()
    assert trainer.evidence.found
    torch.manual_seed(5)
    for parameter in trainer.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    with caplog.at_level(logging.WARNING):
        result = trainer.push_to_hub(license="mit")
    assert result.statement is None and not result.evidence.found
    assert "published without a statement: the mark was not read back from the saved files" in caplog.text
    assert "the weights were replaced since" in caplog.text
    assert "watermark/statement.json" not in hub.files("me/model") and "watermark/subkey0.json" not in result.files
    assert not verify("me/model", trainer.key).found
    assert "license: mit" in hub.files("me/model")["README.md"].decode()


def test_the_mark_is_read_from_the_folder(hub, shop, copy):
    seen = []

    def read(folder):
        seen.append(folder)
        return shop.read(folder)

    result = publish(copy, "me/model", shop.key, shop.owner, read)
    assert seen == [copy] and result.evidence.found and result.statement is not None
    other_weights(copy)
    result = publish(copy, "me/model", shop.key, shop.owner, read)
    assert result.statement is None and not result.evidence.found and not check("me/model")["V0"].facts


def test_evidence_from_elsewhere_is_refused(hub, shop):
    with pytest.raises(
        InvalidInput, match="read_mark is a function that reads the mark from the folder, not Evidence"
    ):
        publish(shop.folder, "me/model", shop.key, shop.owner, shop.evidence)
    assert hub.requests == []


def swapped_while_reading(shop, copy, monkeypatch):
    def read(folder):
        evidence = shop.read(folder)
        other_weights(folder)
        return evidence

    return read


def swapped_before_reading(shop, copy, monkeypatch):
    marked = (copy / "model.safetensors").read_bytes()
    other_weights(copy)

    def read(folder):
        (folder / "model.safetensors").write_bytes(marked)
        return shop.read(folder)

    return read


def swapped_config(shop, copy, monkeypatch):
    def read(folder):
        evidence = shop.read(folder)
        (folder / "config.json").write_text("{}")
        return evidence

    return read


def deleted(shop, copy, monkeypatch):
    def read(folder):
        evidence = shop.read(folder)
        (folder / "config.json").unlink()
        return evidence

    return read


@pytest.mark.parametrize("attack", [swapped_while_reading, swapped_before_reading, swapped_config, deleted])
def test_a_file_that_changes_between_reading_and_commit(hub, shop, copy, monkeypatch, attack):
    with pytest.raises(InvalidInput, match="changed .*publish again when nobody writes there"):
        publish(copy, "me/model", shop.key, shop.owner, attack(shop, copy, monkeypatch))
    assert hub.count("POST", "/commit/") == 0


def test_a_file_that_changes_between_the_last_look_and_the_commit(hub, shop, copy, monkeypatch):
    """The commit names the digest of what it read itself."""
    from hf_watermark.publishing.files import Selection

    look = Selection.refuse_changed

    def then_swap(self, what, digests=None):
        look(self, what, digests)
        if digests is None:
            other_weights(copy)

    monkeypatch.setattr(Selection, "refuse_changed", then_swap)
    with pytest.raises(InvalidInput, match="model.safetensors: changed after its mark was read"):
        publish(copy, "me/model", shop.key, shop.owner, shop.read)
    assert hub.count("POST", "/commit/") == 0


def test_a_file_that_changes_during_the_upload_is_told(hub, shop, copy):
    hub.before_commit = lambda: save_file(
        load_file(copy / "model.safetensors"), copy / "model.safetensors", {"a": "b"}
    )
    with pytest.raises(InvalidInput, match="changed while it was uploaded, so that http.* may hold another file"):
        publish(copy, "me/model", shop.key, shop.owner, shop.read)
