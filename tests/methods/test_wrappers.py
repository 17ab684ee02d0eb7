"""What every model wrapper owes to whoever loads one from an untrusted folder."""

import pytest
from tiny import tiny_resnet

from hf_watermark import SmoothedModelForImageClassification
from hf_watermark.backbones import backbone_record
from hf_watermark.methods.soft_label import PerturbedOutputModelForImageClassification


@pytest.mark.parametrize("wrapper", [SmoothedModelForImageClassification, PerturbedOutputModelForImageClassification])
def test_a_wrapper_ignores_hostile_fields_of_its_backbone(wrapper):
    hostile = {
        "auto_map": {"AutoModelForImageClassification": "evil/repo--code.Model"},
        "_attn_implementation": "evil/kernel:attack",
        "attn_implementation": "evil/kernel",
    }
    model = tiny_resnet()
    wrapped = wrapper(wrapper.config_class(backbone=backbone_record(model) | hostile))
    assert type(wrapped.backbone) is type(model)
    assert "evil" not in wrapped.backbone.config.to_json_string(use_diff=False)
