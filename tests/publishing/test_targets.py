"""A mark that is weaker than its owner asked for is published only on purpose."""

import pytest
from tiny import patterned_images, tiny_resnet

from hf_watermark import FunctionCoupledConfig, InvalidInput, Owner, Verdict, plan_key
from hf_watermark.evidence import Access, Evidence
from hf_watermark.publishing import Extras, preview
from hf_watermark.publishing.targets import below_target


SMALL = {"pool_per_class": 4, "images_per_rule": 4}


def made(target):
    owner, model = Owner.create(), tiny_resnet()
    config = FunctionCoupledConfig(target_log2_p=target, **SMALL)
    return owner, model, plan_key(model, patterned_images(), config, owner)


def read(log2_p):
    fields = {"null": "", "access": frozenset({Access.LABELS}), "bound": True}
    evidence = Evidence("function_coupled", 100, 192, log2_p=log2_p, log2_e=-log2_p, **fields)
    evidence.verdict = Verdict.FOUND
    return evidence


def test_it_is_compared_with_what_was_asked_for():
    _, _, key = made(-96.0)
    assert below_target(key, read(-100.0)) == []
    (said,) = below_target(key, read(-70.0))
    assert "`function_coupled` has log2 p = -70, its target was -96" in said
    assert below_target(made(0.0)[2], read(-70.0)) == []


def test_publishing_it_is_refused_unless_allowed(tmp_path):
    owner, model, key = made(-96.0)
    model.save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match="its target was -96.*`--allow-weak`"):
        preview(tmp_path, "me/model", key, owner, lambda folder: read(-70.0))
    weak = preview(tmp_path, "me/model", key, owner, lambda folder: read(-70.0), Extras(allow_weak=True))
    strong = preview(tmp_path, "me/model", key, owner, lambda folder: read(-100.0))
    assert "watermark/statement.json" in weak.files and "watermark/statement.json" in strong.files
