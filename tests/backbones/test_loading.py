"""Suspects run on the owner's architecture, whatever names and config they come with."""

import json

import pytest
import timm
import torch
from transformers import AutoModelForImageClassification

from hf_watermark import InvalidInput, wrap_timm
from hf_watermark.backbones import backbone_record, run_on_backbone
from hf_watermark.serialization import SafetensorsFolder, canonical_json


def test_a_folder_answers_like_the_model_it_came_from(saveable_backbone, ask, tmp_path):
    model, images = saveable_backbone
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()  # never read
    rebuilt = run_on_backbone(backbone_record(model), SafetensorsFolder(tmp_path))
    torch.testing.assert_close(ask(rebuilt, images), ask(model, images), rtol=1e-4, atol=1e-5)
    assert not rebuilt.training


def test_a_record_from_a_key_file_has_no_floats_that_are_whole(build_backbone):
    model = build_backbone("deeplab mobilevit")
    record = json.loads(canonical_json(backbone_record(model)))
    assert record["mlp_ratio"] == 2 and type(record["mlp_ratio"]) is int
    assert run_on_backbone(record, model.state_dict()).config.mlp_ratio == 2.0
    with pytest.raises(InvalidInput, match="the backbone's config is not one of `mobilevit`"):
        run_on_backbone(record | {"mlp_ratio": "two"}, model.state_dict())


@pytest.mark.parametrize("head", ["transformers mobilenet_v2", "deeplab mobilenet_v2"])
def test_the_record_says_which_head_the_owner_has(build_backbone, head):
    model = build_backbone(head)
    rebuilt = run_on_backbone(backbone_record(model), model.state_dict())
    assert type(rebuilt) is type(model)
    hostile = backbone_record(model) | {"architectures": ["os.system", "ViTForImageClassification"]}
    if head.startswith("transformers"):
        assert type(run_on_backbone(hostile, model.state_dict())) is type(model)


@pytest.mark.parametrize("name", ["transformers vit", "transformers resnet", "timm resnet18", "timm vit"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_live_names_and_wrappers_are_understood(build_backbone, ask, sample_images, name, prefix):
    model, images = build_backbone(name), sample_images(name)
    tensors = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    rebuilt = run_on_backbone(backbone_record(model), tensors)
    torch.testing.assert_close(ask(rebuilt, images), ask(model, images), rtol=1e-4, atol=1e-5)


def test_a_bare_timm_file_fits_the_wrapped_owner(build_backbone, ask, sample_images):
    model = build_backbone("timm resnet18")
    rebuilt = run_on_backbone(backbone_record(model), model.timm_model.state_dict())
    images = sample_images("timm resnet18")
    torch.testing.assert_close(ask(rebuilt, images), ask(model, images), rtol=1e-4, atol=1e-5)


def test_half_precision_suspects_run_in_float32(build_backbone, ask, sample_images):
    model = build_backbone("transformers resnet")
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    rebuilt = run_on_backbone(backbone_record(model), tensors)
    images = sample_images("transformers resnet")
    assert {parameter.dtype for parameter in rebuilt.parameters()} == {torch.float32}
    torch.testing.assert_close(ask(rebuilt, images), ask(model, images), rtol=0.1, atol=0.1)


def test_the_record_is_plain_json_and_names_no_code(build_backbone):
    model = build_backbone("transformers vit")
    model.config.auto_map = {"AutoConfig": "evil.Config"}
    record = backbone_record(model)
    assert json.loads(json.dumps(record)) == record and record["model_type"] == "vit"
    assert not {"auto_map", "_attn_implementation"} & record.keys()
    assert backbone_record(timm.create_model("resnet10t", channels=(8, 8, 8, 8))) == {}


def test_hostile_config_fields_are_ignored(build_backbone, ask, sample_images):
    model, images = build_backbone("transformers vit"), sample_images("transformers vit")
    hostile = {
        "auto_map": {
            "AutoConfig": "evil/repo--code.Config",
            "AutoModelForImageClassification": "evil/repo--code.Model",
        },
        "_attn_implementation": "evil/kernel:attack",
        "attn_implementation": "evil/kernel",
        "_experts_implementation": "evil/experts",
    }
    rebuilt = run_on_backbone(backbone_record(model) | hostile, model.state_dict())
    torch.testing.assert_close(ask(rebuilt, images), ask(model, images), rtol=1e-4, atol=1e-5)
    assert type(rebuilt) is type(model)
    assert "evil" not in rebuilt.config.to_json_string(use_diff=False)


@pytest.mark.parametrize("model_type", [None, "no-such-model", ""])
def test_unknown_model_types_are_invalid_input(build_backbone, model_type):
    model = build_backbone("transformers vit")
    with pytest.raises(InvalidInput, match="names no known model type"):
        run_on_backbone(backbone_record(model) | {"model_type": model_type}, model.state_dict())


@pytest.mark.parametrize("name", ["transformers vit", "timm resnet18"])
def test_a_head_for_other_labels_is_run_with_these(build_backbone, name):
    model = build_backbone(name)
    head = "classifier" if name == "transformers vit" else "timm_model.fc"
    state = model.state_dict()
    state[f"{head}.weight"] = torch.zeros(7, state[f"{head}.weight"].shape[1])
    state[f"{head}.bias"] = torch.zeros(7)
    assert run_on_backbone(backbone_record(model), state).config.num_labels == 7
    state[f"{head}.bias"] = torch.zeros(6)
    with pytest.raises(InvalidInput, match="do not fit the owner's architecture or label count"):
        run_on_backbone(backbone_record(model), state)


@pytest.mark.parametrize("name", ["transformers vit", "timm resnet18"])
def test_missing_tensors_are_invalid_input(build_backbone, name):
    model = build_backbone(name)
    state = model.state_dict()
    lost = list(state)[4]  # a weight or statistic, no counter
    del state[lost]
    with pytest.raises(InvalidInput, match="1 tensors are missing or of another shape, first"):
        run_on_backbone(backbone_record(model), state)
    with pytest.raises(InvalidInput, match="do not fit the owner's architecture"):
        run_on_backbone(backbone_record(model), build_backbone("timm swin").state_dict())


def test_wrapping_keeps_timms_own_weights(tmp_path):
    # The wrapper's constructor would draw every convolution anew with std 0.02.
    module = timm.create_model("resnet18", num_classes=4, channels=[8, 8, 16, 16])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    wrapper = wrap_timm(module, "resnet18", 4, channels=[8, 8, 16, 16])
    assert all(torch.equal(wrapper.timm_model.state_dict()[name], tensor) for name, tensor in before.items())
    wrapper.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(wrapper)
    assert all(torch.equal(loaded.timm_model.state_dict()[name], tensor) for name, tensor in before.items())
