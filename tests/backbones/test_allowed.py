"""Configs of strangers: each is refused by name and value, or builds a plain network. Nothing is loaded, asked or started."""

import json
import pickle
import socket
import subprocess
import time

import pytest
import torch
import zoo
from tiny import tiny_resnet
from transformers import CONFIG_MAPPING, AutoModelForImageClassification, AutoModelForSemanticSegmentation

from hf_watermark import InvalidInput, Suspect
from hf_watermark.backbones import backbone_config, backbone_record, run_on_backbone
from hf_watermark.keys import ModelContext
from hf_watermark.serialization import SafetensorsFolder, canonical_json


VIT = {"model_type": "vit", **zoo.VIT, "num_hidden_layers": 1}
TIMM = {"model_type": "timm_wrapper", "architecture": "resnet18", "num_classes": 4}
TINY = {"channels": [8, 8, 16, 16]}
UPERNET = {"model_type": "upernet", "hidden_size": 8, "use_auxiliary_head": False}
SMOOTHED = {"model_type": "hf_watermark_smoothed", "backbone": VIT}


def timm_with(**arguments):
    return TIMM | {"model_args": TINY | arguments}


def nested(depth: int) -> dict:
    record: dict = VIT
    for _ in range(depth):
        record = {"model_type": "hf_watermark_smoothed", "backbone": record}
    return record


# The config, and what its refusal must name: the field, and its value where there is one.
REFUSED = {
    "a path as architecture": (TIMM | {"architecture": "/tmp/evil"}, "`architecture` is '/tmp/evil'"),
    "a repository": (TIMM | {"architecture": "hf-hub:evil/model"}, "`architecture` is 'hf-hub:evil/model'"),
    "its older spelling": (TIMM | {"architecture": "hf_hub:evil/model"}, "`architecture` is 'hf_hub:evil/model'"),
    "a local folder": (TIMM | {"architecture": "local-dir:/tmp"}, "`architecture` is 'local-dir:/tmp'"),
    "a bare repository": (TIMM | {"architecture": "timm/resnet18.a1_in1k"}, "`architecture` is 'timm/resnet18"),
    "no timm model": (TIMM | {"architecture": "resnet18x"}, "`architecture` is 'resnet18x'"),
    "an architecture that is no name": (TIMM | {"architecture": ["resnet18"]}, r"`architecture` is \['resnet18'\]"),
    "a checkpoint": (timm_with(checkpoint_path="/tmp/evil.pth"), "'checkpoint_path' is '/tmp/evil.pth'"),
    "pretrained weights": (timm_with(pretrained=True), "'pretrained' is True"),
    "a pretrained config": (timm_with(pretrained_cfg={"file": "/tmp/evil.pth"}), "'pretrained_cfg' is {'file'"),
    "an overlay": (timm_with(pretrained_cfg_overlay={"url": "http://evil"}), "'pretrained_cfg_overlay' is"),
    "a cache": (timm_with(cache_dir="/tmp"), "'cache_dir' is '/tmp'"),
    "features only": (timm_with(features_only=True), "'features_only' is True"),
    "pruned": (timm_with(pruned=True), "'pruned' is True"),
    "a device": (timm_with(device="cuda"), "'device' is 'cuda'"),
    "script": (timm_with(scriptable=True), "'scriptable' is True"),
    "a layer that is an address": (timm_with(norm_layer="http://evil"), "'norm_layer' is 'http://evil'"),
    "a layer that is a module": (timm_with(act_layer="os.system"), "'act_layer' is 'os.system'"),
    "a layer that timm does not know": (timm_with(act_layer="evil"), "no `timm_wrapper` can be built"),
    "nested arguments": (timm_with(block_args=[[{"block_type": "x"}]]), "'block_args' is"),
    "a list of dicts": (timm_with(channels=[{"a": 1}]), r"'channels' is \[{'a': 1}\]"),
    "arguments that are a list": (TIMM | {"model_args": ["pretrained"]}, "`model_args` is"),
    "a count given twice": (timm_with(num_classes=7), "'num_classes' is 7"),
    "too many stages": (timm_with(layers=[10**5] * 4), "`layers` is 100000"),
    "too wide": (timm_with(channels=[10**6] * 4), "more than 4000000000 elements"),
    "no model type": ({"hidden_size": 8}, r"no known model type \(None\)"),
    "a model type that is a list": (VIT | {"model_type": ["vit"]}, r"no known model type \(\['vit'\]\)"),
    "a language model": ({"model_type": "gpt2"}, r"no known model type \('gpt2'\)"),
    "a bare backbone": ({"model_type": "timm_backbone", "backbone": "resnet18"}, "no known model type"),
    "a wrong kind": (VIT | {"hidden_size": "big"}, "hidden_size"),
    "an address in a field": (VIT | {"hidden_act": "https://evil/x"}, "`hidden_act` is 'https://evil/x'"),
    "an unknown activation": (VIT | {"hidden_act": "evil"}, "no `vit` can be built"),
    "a dict in a field": (VIT | {"hidden_act": {"class": "os.system"}}, "`hidden_act` is {'class': 'os.system'}"),
    "a dtype that is a function": (VIT | {"dtype": "load"}, "`dtype` is 'load'"),
    "its older name": (VIT | {"torch_dtype": "hub"}, "`torch_dtype` is 'hub'"),
    "labels that are no names": (VIT | {"id2label": {"0": {"x": 1}}}, "`id2label` is"),
    "labels without numbers": (VIT | {"id2label": {"x": "y"}}, "not one of `vit`"),
    "too many labels": (VIT | {"num_labels": 10**9}, "`num_labels` is 1000000000"),
    "an endless net": (VIT | {"num_hidden_layers": 10**9}, "`num_hidden_layers` is 1000000000"),
    "a wide net": (VIT | {"hidden_size": 10**6, "num_attention_heads": 1}, "more than 4000000000 elements"),
    "a huge number": (VIT | {"intermediate_size": 10**12}, "`intermediate_size` is 1000000000000"),
    "a huge image": (VIT | {"image_size": 10**6}, "`image_size` is 1000000"),
    "a patch of no pixels": (VIT | {"patch_size": 0}, "no `vit` can be built"),
    "not a number": (VIT | {"layer_norm_eps": float("nan")}, "`layer_norm_eps` is nan"),
    "many stages": ({"model_type": "resnet", "depths": [900] * 4, "hidden_sizes": [8] * 4}, "10000 modules"),
    "a list without end": ({"model_type": "resnet", "depths": [1] * 5000}, "`depths` is"),
    "a repository as backbone": (UPERNET | {"backbone": "evil/repo"}, "`backbone` is 'evil/repo'"),
    "pretrained backbones": (
        UPERNET | {"backbone": "resnet18", "use_timm_backbone": True, "use_pretrained_backbone": True},
        "`backbone` is 'resnet18'",
    ),
    "a timm backbone from the Hub": (
        UPERNET | {"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:evil/x"}},
        "`backbone` is 'hf-hub:evil/x'",
    ),
    "a backbone that is none": (UPERNET | {"backbone_config": {"model_type": "gpt2"}}, "`model_type` is 'gpt2'"),
    "a backbone without type": (UPERNET | {"backbone_config": {"hidden_size": 8}}, "`model_type` is None"),
    "a config in a field of numbers": (VIT | {"image_size": {"model_type": "vit"}}, "`image_size` is"),
    "a wrapper of a stranger": (SMOOTHED | {"backbone": TIMM | {"architecture": "/x"}}, "`architecture` is '/x'"),
    "a wrapper without end": (nested(60), "nested more than 4 deep"),
    "a wrapper that never answers": (SMOOTHED | {"draws": 10**6}, "`draws` is 1000000"),
    "scales that are no numbers": (SMOOTHED | {"scales": {"a": "b"}}, "`scales` is"),
}
# Said by honest configs of the Hub too, so it is left out instead of refused.
HARMLESS = {
    "remote code": VIT | {"auto_map": {"AutoConfig": "evil/repo--code.Config"}, "trust_remote_code": True},
    "an attention kernel": VIT | {"_attn_implementation": "evil/kernel:attack", "attn_implementation": "evil/kernel"},
    "experts": VIT | {"_experts_implementation": "evil/experts", "experts_implementation": "evil/experts"},
    "quantisation": VIT | {"quantization_config": {"quant_method": "evil", "modules_to_not_convert": ["x"]}},
    "where it came from": VIT | {"_name_or_path": "/home/evil", "name_or_path": "evil/repo"},
    "other classes": VIT | {"architectures": ["os.system", "GPT2LMHeadModel"]},
    "private fields": VIT | {"_commit_hash": "x", "__class__": "evil", "_attn_implementation_internal": "evil/x"},
    "methods": VIT | {"to_dict": "x", "from_pretrained": "evil/repo", "sub_configs": {"a": 1}},
    "weights of timm": TIMM
    | {
        "model_args": TINY,
        "pretrained_cfg": {"url": "http://evil", "file": "/tmp/evil.pth", "hf_hub_id": "evil/x", "custom_load": True},
    },
    "a pretrained config that is text": TIMM | {"model_args": TINY, "pretrained_cfg": "evil"},
    "an unknown tag": TIMM | {"model_args": TINY, "architecture": "resnet18.evil"},
    "a known tag": TIMM | {"model_args": TINY, "architecture": "resnet18.a1_in1k"},
}


@pytest.fixture
def sealed(monkeypatch):
    """Whatever would load, ask or start something fails."""

    def caught(name):
        def fail(*arguments, **options):
            raise AssertionError(f"{name} was called")

        return fail

    backbone_config(TIMM | {"model_args": TINY}, "advice")  # what is imported late is imported now
    monkeypatch.setattr(torch, "load", caught("torch.load"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", caught("torch.hub"))
    monkeypatch.setattr(socket.socket, "connect", caught("connect"))
    monkeypatch.setattr(socket, "create_connection", caught("create_connection"))
    monkeypatch.setattr(subprocess, "Popen", caught("Popen"))
    monkeypatch.setattr(pickle, "load", caught("pickle.load"))
    monkeypatch.setattr(pickle, "loads", caught("pickle.loads"))


@pytest.mark.parametrize("name", REFUSED)
def test_what_says_more_than_a_network_has_is_refused(sealed, name):
    record, words = REFUSED[name]
    before, random = time.perf_counter(), torch.get_rng_state()
    with pytest.raises(InvalidInput, match=words):
        backbone_config(record, "advice")
    with pytest.raises(InvalidInput, match=words):
        run_on_backbone(record, {})
    assert time.perf_counter() - before < 60 and torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("name", HARMLESS)
def test_what_can_do_nothing_is_left_out(sealed, name):
    config = backbone_config(HARMLESS[name], "advice")
    assert "evil" not in config.to_json_string(use_diff=False) and not hasattr(config, "quantization_config")
    model = AutoModelForImageClassification.from_config(config)
    rebuilt = run_on_backbone(HARMLESS[name], model.state_dict())
    assert type(rebuilt).__module__.startswith("transformers.models.")


@pytest.mark.parametrize("name", zoo.SAVEABLE)
def test_honest_configs_still_build(sealed, name, tmp_path):
    model = zoo.build(name)
    record = json.loads(canonical_json(backbone_record(model)))
    rebuilt = run_on_backbone(record, model.state_dict())
    images = zoo.images_for(name)
    torch.testing.assert_close(zoo.logits(rebuilt, images), zoo.logits(model, images), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert type(run_on_backbone(record, SafetensorsFolder(tmp_path))) is type(model)


def every_type():
    autos = (AutoModelForImageClassification, AutoModelForSemanticSegmentation)
    types = {config.model_type for auto in autos for config in auto._model_mapping}
    # Gemma has 4.3 billion parameters, Dinat needs a library that is not here, and Sapiens2 builds no head from its own defaults.
    return sorted(
        types - {"shieldgemma2", "dinat", "sapiens2"} - {name for name in types if name.startswith("hf_watermark")}
    )


@pytest.mark.parametrize("model_type", every_type())
def test_what_transformers_writes_itself_is_read(sealed, model_type):
    record = json.loads(CONFIG_MAPPING[model_type]().to_json_string(use_diff=False))
    record = json.loads(canonical_json(record | {"model_type": model_type}))
    config = backbone_config(record, "advice")
    assert type(config) is CONFIG_MAPPING[model_type]
    again = json.loads(config.to_json_string(use_diff=False))
    different = {name for name in record if name in again and again[name] != record[name]}
    assert not different - {"transformers_version", "_name_or_path"}, different


def test_a_suspect_is_asked_on_the_records_architecture_only(sealed, tmp_path):
    model = tiny_resnet()
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 1, 16, 16)
    honest = ModelContext.of(backbone_record(model))
    suspect = Suspect.open(tmp_path, honest.backbone)
    assert torch.equal(suspect.labels(images, 10), model(images).logits.argmax(dim=1))
    hostile = ModelContext.from_dict(ModelContext.of(TIMM | {"architecture": "local-dir:" + str(tmp_path)}).to_dict())
    with pytest.raises(InvalidInput, match="`architecture` is 'local-dir:"):
        Suspect.open(tmp_path, hostile.backbone).labels(images, 10)


def test_what_an_owner_records_names_no_place(build_backbone):
    model = build_backbone("timm resnet18")
    model.config.pretrained_cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, "file": "/home/me/x.pth", "hf_hub_id": "me/x"}
    model.config.quantization_config = {"quant_method": "x"}
    record = backbone_record(model)
    assert record["pretrained_cfg"] == {"mean": [0.5] * 3, "std": [0.5] * 3} and "quantization_config" not in record
    assert ModelContext.of(record).mean == (0.5, 0.5, 0.5)


def test_a_record_that_is_no_record():
    for record in (None, {}, [], "vit", 7):
        with pytest.raises(InvalidInput, match="the backbone's config"):
            backbone_config(record, "advice")
