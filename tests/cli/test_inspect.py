"""`hf-watermark inspect`: payload, bit errors by layer, p-value."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import patterned_images, tiny_resnet, training_arguments

from hf_watermark import Owner, WatermarkKey, WaterMASConfig, WaterMASTrainer


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `model` and keys `key` (two sub-keys of 128 bits, a payload) and `silent` (no payload)."""
    folder = tmp_path_factory.mktemp("inspect")
    for name, payload in (("key", b"licence 7"), ("silent", None)):
        config = WaterMASConfig(bits=128, subkeys=2, payload=payload, switch_in=0.0)
        trainer = WaterMASTrainer(
            model=tiny_resnet(hidden_sizes=[32, 64]),
            args=training_arguments(folder / "training", max_steps=1),
            train_dataset=patterned_images(40),
            watermark=config,
            owner=Owner.create(),
        )
        trainer.train()
        trainer.model.save_pretrained(folder / f"{name}-model")
        with pytest.warns(UserWarning, match="without a passphrase"):
            trainer.key.save(folder / name)
    return folder


def test_payload_and_bit_errors(run, marked):
    result = run("inspect", marked / "key-model", "--key", marked / "key")
    assert result.exit_code == 0, result.output
    assert "payload: b'licence 7', as committed, 0 of 144 code bits wrong" in result.stdout
    assert "mark found: log2 p = -128.0" in result.stdout
    rows = [line.split("│")[1:-1] for line in result.stdout.splitlines() if line.startswith("│")]
    counts = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert counts["all"] == ["0", "256", "0.000"] and {"resnet.0", "resnet.1"} < counts.keys()


def test_json_and_damage(run, marked, tmp_path):
    """A few flipped layers: the payload survives, the errors show where they are."""
    tensors = load_file(marked / "key-model" / "model.safetensors")
    name = "resnet.encoder.stages.0.layers.0.layer.1.convolution.weight"
    tensors[name][::4] *= -1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = json.loads(run("inspect", tmp_path, "--key", marked / "key", "--json").stdout)
    assert found["layers"]["resnet.0"]["errors"] > 0 == found["layers"]["resnet.1"]["errors"]
    assert found["payload"]["as_committed"] and bytes.fromhex(found["payload"]["recovered"]) == b"licence 7"
    assert found["matches"] == found["bits"] - found["layers"]["resnet.0"]["errors"]


def test_an_unmarked_model_says_nothing(run, marked, shop):
    result = run("inspect", shop / "plain", "--key", marked / "key")
    assert result.exit_code == 1
    assert "payload: not readable" in result.stdout and "not found" in result.stdout


def test_a_key_without_a_payload(run, marked):
    result = run("inspect", marked / "silent-model", "--key", marked / "silent")
    assert result.exit_code == 0 and "payload: the key has none" in result.stdout


def test_another_method_is_refused(refused, shop):
    assert "marks with greedy_residuals, which has no bits" in refused(
        "inspect", shop / "marked", "--key", shop / "keys" / "open"
    )


def test_a_wrong_folder_is_refused(refused, marked, tmp_path):
    assert WatermarkKey.load(marked / "key").assignments[0].method == "watermas"
    assert "no such file or folder" in refused("inspect", tmp_path / "absent", "--key", marked / "key")
