"""A suspect that the key was never made for: the reason says what the key is for and what the suspect says it is."""

import json

import pytest
from safetensors.torch import save_file
from tiny import patterned_images, tiny_resnet
from transformers import BertConfig, BertForSequenceClassification

from hf_watermark import Verdict, plan_key, verify


GREEDY = {"method": "greedy_residuals", "bits": 16, "group_size": 16, "subkeys": 1}
RULES = {"method": "function_coupled", "pool_per_class": 4, "images_per_rule": 4}
FOR = "The key is for ResNetForImageClassification with 10 classes, marked by "


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=20, **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("methods", [[GREEDY], [RULES], [GREEDY, RULES]], ids=["weights", "answers", "both"])
def test_a_model_of_another_kind(bert, owner, methods):
    key = plan_key(tiny_resnet(), patterned_images(300), methods, owner)
    evidence = verify(bert, key)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    names = ", ".join(item["method"] for item in methods)
    assert f"{FOR}{names}; the suspect's config.json says that it is BertForSequenceClassification" in evidence.reason


def test_an_adapter_without_its_model(tmp_path, owner):
    (tmp_path / "adapter_config.json").write_text("{}")
    tensors = tiny_resnet().state_dict()
    save_file({"base_model.model.q.lora_A.weight": tensors["classifier.1.weight"]}, tmp_path / "adapter_model.safetensors")  # fmt: skip
    evidence = verify(tmp_path, plan_key(tiny_resnet(), None, GREEDY, owner))
    assert evidence.verdict is Verdict.INCONCLUSIVE and FOR in evidence.reason
    assert "the suspect holds a PEFT adapter (adapter_model.safetensors) and not the model that it changes. Merge it" in evidence.reason  # fmt: skip


@pytest.mark.parametrize("name", ["\x1b[2J", "<script>", "a" * 200, 5, ["x"], None])
def test_a_strange_name_is_not_repeated(bert, owner, name, tmp_path):
    save_file({"w": tiny_resnet().classifier[1].weight.detach()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
    reason = verify(tmp_path, plan_key(tiny_resnet(), None, GREEDY, owner)).reason
    assert reason.endswith(f"{FOR}greedy_residuals")


def test_a_live_model_of_another_kind(owner):
    evidence = verify(tiny_resnet(hidden_sizes=[48, 64]), plan_key(tiny_resnet(), None, GREEDY, owner))
    assert evidence.reason.endswith(f"{FOR}greedy_residuals")
