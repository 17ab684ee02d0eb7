"""Every bad input of `hf-watermark verify`: exit status 2, one line that says what is wrong, nothing written."""

import base64
import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification

from hf_watermark import FunctionCoupledConfig, FunctionCoupledTrainer, InvalidInput, Opening, WatermarkKey
from hf_watermark.publishing.files import model_files


@pytest.fixture
def key(shop, tmp_path):
    """A copy of the unencrypted key that may be spoilt."""
    return shutil.copytree(shop / "keys" / "open", tmp_path / "key")


@pytest.fixture
def model(shop, tmp_path):
    """A copy of the marked model that may be spoilt."""
    return shutil.copytree(shop / "marked", tmp_path / "model")


@pytest.fixture
def evidence(tmp_path):
    """No refused check may leave this file behind."""
    return ["--output", tmp_path / "evidence.json"]


def test_wrong_or_missing_passphrase(refused, shop, tmp_path, evidence):
    check = ["verify", shop / "marked", "--key", shop / "keys" / "locked", *evidence]
    assert "is encrypted; give its passphrase with --passphrase-file" in refused(*check)
    words = tmp_path / "words"
    words.write_text("the wrong passphrase")
    words.chmod(0o600)
    assert "this passphrase does not open it" in refused(*check, "--passphrase-file", words)


def test_truncated_key(refused, shop, key, evidence):
    file = key / "key.json"
    file.write_bytes(file.read_bytes()[:300])
    assert "key.json: truncated" in refused("verify", shop / "marked", "--key", key, *evidence)


def test_edited_key(refused, shop, key, evidence):
    file = key / "key.json"
    envelope = json.loads(file.read_text())
    plain = base64.b64decode(envelope["ciphertext"]).replace(b'"count":16', b'"count":32')
    envelope["ciphertext"] = base64.b64encode(plain).decode()
    file.write_text(json.dumps(envelope))
    assert "does not match its digest" in refused("verify", shop / "marked", "--key", key, *evidence)
    # Somebody who also repairs the digest still lacks the owner's signature.
    envelope["commit"] = base64.b64encode(hashlib.sha256(plain).digest()).decode()
    file.write_text(json.dumps(envelope))
    assert "signature does not fit" in refused("verify", shop / "marked", "--key", key, *evidence)


def test_key_that_others_can_read(refused, shop, key, evidence):
    (key / "key.json").chmod(0o644)
    assert "chmod 600" in refused("verify", shop / "marked", "--key", key, *evidence)


def test_key_of_another_model_is_no_error_but_a_verdict_with_its_reason(run, tiny, shop, tmp_path):
    fields = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit = ViTForImageClassification(ViTConfig(intermediate_size=32, num_channels=1, **fields))
    vit.save_pretrained(tmp_path / "vit")
    result = run("verify", tmp_path / "vit", "--key", shop / "keys" / "open", "--json")
    assert result.exit_code == 3 and "could not be read" in json.loads(result.stdout)["reason"]
    tiny(hidden_sizes=[48, 64]).save_pretrained(tmp_path / "wide")
    result = run("verify", tmp_path / "wide", "--key", shop / "keys" / "open", "--json")
    assert result.exit_code == 3 and "the suspect has another architecture" in json.loads(result.stdout)["reason"]


@pytest.mark.parametrize("name", ["renamed/weights.safetensors", "renamed/model.BIN", "keys/config.json"])
def test_a_missing_file_is_no_repository(refused, shop, monkeypatch, name):
    monkeypatch.chdir(shop)
    said = f"{name}: no such file or folder; give a folder with model.safetensors"
    assert said in refused("verify", name, "--key", shop / "keys" / "open")
    assert said in refused("statement", "check", name)


def test_a_file_where_the_folder_is_wanted(refused, run, shop, tmp_path):
    file = shop / "marked" / "model.safetensors"
    run("owner", "create", "--path", tmp_path / "owner.json", "--no-passphrase")
    words = f"{file}: is a file; give the folder {shop / 'marked'}"
    owner = ("--owner", tmp_path / "owner.json")
    assert words in refused("mark", file, "--output", tmp_path / "new", *owner)
    assert words in refused("attack", "weight_noise", file, "--output", tmp_path / "new")
    with pytest.raises(InvalidInput, match="give the folder"):
        model_files(file)
    with pytest.raises(InvalidInput, match="no such folder"):
        model_files(tmp_path / "nothing")


def test_missing_folders(refused, shop, tmp_path, evidence):
    nothing = tmp_path / "nothing"
    assert "no such file or folder" in refused("verify", nothing, "--key", shop / "keys" / "open", *evidence)
    assert "no such folder; expected the owner's key folder" in refused(
        "verify", shop / "marked", "--key", nothing, *evidence
    )
    assert "cannot be opened" in refused("verify", shop / "marked", "--opening", nothing, *evidence)


def test_key_and_opening_exclude_each_other(refused, shop, evidence):
    assert "exactly one of" in refused("verify", shop / "marked", *evidence)
    both = ["--key", shop / "keys" / "open", "--opening", shop / "subkey0.json"]
    assert "exactly one of" in refused("verify", shop / "marked", *both, *evidence)


@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[:-100], lambda raw: raw[:4], lambda raw: b"\xff" * 64, lambda raw: b""]
)
def test_corrupt_safetensors(refused, shop, model, evidence, spoil):
    file = model / "model.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    assert "model.safetensors" in refused("verify", model, "--key", shop / "keys" / "open", *evidence)


def test_pickled_weights(refused, shop, model, evidence):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pickled" in refused("verify", model, "--key", shop / "keys" / "open", *evidence)


def test_nan_weights(run, shop, model, evidence):
    tensors = load_file(model / "model.safetensors")
    for name in tensors:
        if name.endswith("convolution.weight"):
            tensors[name].flatten()[0] = torch.nan
    save_file(tensors, model / "model.safetensors")
    # Rows that hold one are left out; what they carried cannot be seen.
    result = run("verify", model, "--key", shop / "keys" / "open", *evidence)
    assert result.exit_code in (0, 3) and "not found:" not in result.stdout


def test_label_count_mismatch(refused, run, tiny, arguments, shop, tmp_path, evidence, owner):
    data = [{"pixel_values": torch.rand(1, 16, 16), "labels": row % 10} for row in range(300)]
    config = FunctionCoupledConfig(pool_per_class=4, images_per_rule=4)
    trainer = FunctionCoupledTrainer(model=tiny(), args=arguments(), train_dataset=data, watermark=config, owner=owner)
    with pytest.warns(UserWarning, match="without a passphrase"):
        trainer.key.save(tmp_path / "rules")
    tiny(num_labels=5).save_pretrained(tmp_path / "five")
    result = run("verify", tmp_path / "five", "--key", tmp_path / "rules", *evidence)
    assert result.exit_code == 3
    assert "lacks 5 of the key's 10 classes" in " ".join(result.stdout.split())
    # With a second method that can still read the model, the answer is a verdict and a warning.
    result = run("verify", tmp_path / "five", "--key", shop / "keys" / "both")
    assert result.exit_code == 3
    assert "knows 5 classes, the key was made for 10" in " ".join(result.stdout.split())


def test_opening_of_answers_cannot_be_checked_on_a_folder(refused, shop, tmp_path, evidence):
    opening = Opening.of(WatermarkKey.load(shop / "keys" / "both"), 1).save(tmp_path / "subkey1.json")
    assert "is read from labels, not from a folder" in refused(
        "verify", shop / "both", "--opening", opening, *evidence
    )


def test_a_message_cannot_command_the_terminal(refused, shop, evidence):
    message = refused("verify", "\x1b[2Jgone", "--key", shop / "keys" / "open", *evidence)
    assert "\x1b" not in message and "no such file" in message
