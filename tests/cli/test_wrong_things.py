"""Commands that got one thing for another: exit status 2 and one sentence that says what it is and what is expected."""

import shutil

import pytest
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=20, **sizes)).save_pretrained(folder)
    return folder


def test_keys_and_openings_of_verify(refused, shop, bert, tmp_path):
    model, key, opening = shop / "marked", shop / "keys" / "open", tmp_path / "opening.json"
    opening.write_text('{"schema": "hf-watermark/opening/v2"}')
    for given, what in (
        (bert, "is the folder of a model; expected the owner's key folder"),
        (key / "key.json", "is a secret file (a key, an owner or a backup); expected the owner's key folder"),
        (opening, "is an opening (one disclosed sub-key); expected the owner's key folder"),
    ):
        message = refused("verify", model, "--key", given)
        assert f"{given}: {what}" in message and "warning" not in message
    assert "is a key folder, and holds secrets; expected an opening" in refused("verify", model, "--opening", key)
    assert "is the folder of a model; expected an opening" in refused("verify", model, "--opening", model)
    assert "is an opening (one disclosed sub-key); expected a model in" in refused("verify", opening, "--key", key)


def test_a_statement_file_is_no_published_model(refused, shop, tmp_path):
    file = tmp_path / "statement.json"
    file.write_text('{"schema": "hf-watermark/statement/v2"}')
    message = refused("verify", shop / "marked", "--key", shop / "keys" / "open", "--statement", file)
    assert "is a published statement; expected a published model: its folder, or owner/name" in message


def test_models_of_ones_own(refused, shop, bert, tmp_path):
    def attempt(folder):
        return refused("attack", "int8_quantize", folder, "--output", tmp_path / "out")

    assert "a 'bert' model neither classifies images nor segments them; give one that does" in attempt(bert)
    assert "is a key folder, and holds secrets; expected a model in safetensors" in attempt(shop / "keys" / "open")
    (tmp_path / "bare").mkdir()
    shutil.copy(shop / "marked" / "model.safetensors", tmp_path / "bare")
    assert "holds weights and no config.json, so the model cannot be built; expected a model" in attempt(tmp_path / "bare")  # fmt: skip
    (tmp_path / "adapter").mkdir()
    save_file({"a.lora_A.weight": next(BertForSequenceClassification.from_pretrained(bert).parameters()).detach()}, tmp_path / "adapter" / "adapter_model.safetensors")  # fmt: skip
    assert "holds a PEFT adapter (adapter_model.safetensors)" in attempt(tmp_path / "adapter")


def test_data_that_is_a_model(refused, shop, bert, tmp_path):
    options = ["--output", tmp_path / "out", "--option", "learning_rate=0.1"]
    message = refused("attack", "finetune", shop / "marked", *options, "--data", bert)
    assert f"{bert}: is the folder of a model; expected images: a parquet file" in message


def test_an_owner_that_is_a_key(refused, shop):
    assert "is a key folder, and holds secrets; expected an owner file" in refused(
        "owner", "show", "--path", shop / "keys" / "open"
    )
