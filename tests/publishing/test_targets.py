"""A mark that is weaker than its owner asked for is published only on purpose."""

import pytest
from tiny import patterned_images, tiny_resnet

from hf_watermark import FunctionCoupledConfig, GreedyResidualsConfig, InvalidInput, Owner, Verdict, plan_key
from hf_watermark.evidence import COMBINED, Access, Evidence, combine
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


def stacked(*log2_p, targets=True):
    """A key of two methods whose marks read so."""
    configs = [
        FunctionCoupledConfig(target_log2_p=-96.0 * targets, **SMALL),
        GreedyResidualsConfig(bits=128, group_size=16),
    ]
    key = plan_key(tiny_resnet(), patterned_images(), configs, Owner.create())
    fields = {"null": "", "access": frozenset({Access.LABELS}), "bound": True}
    parts = [
        combine([Evidence(config.method, 64, 128, value, -value, **fields)], config.method)
        for config, value in zip(configs, log2_p, strict=True)
    ]
    total = combine([part.parts[0] for part in parts], COMBINED)
    total.parts = parts
    return key, total.decide()


def test_a_method_that_is_lost_is_named_whatever_the_others_have():
    for lost in (-0.4, -63.0):
        key, evidence = stacked(-150.0, lost)
        assert evidence.found
        (said,) = below_target(key, evidence)
        assert (
            f"the mark of `greedy_residuals` has log2 p = {round(lost)}, and -64 is the least of one that is in"
            in said
        )
        (said,) = below_target(*stacked(lost, -256.0, targets=False))
        assert "the mark of `function_coupled`" in said
    assert below_target(*stacked(-150.0, -128.0)) == []
    assert len(below_target(*stacked(-1.0, -1.0))) == 2


def test_a_subkey_that_is_lost_is_named():
    fields = {"null": "", "access": frozenset({Access.WEIGHTS}), "bound": True}
    config = GreedyResidualsConfig(bits=64, group_size=8, subkeys=2)
    key = plan_key(tiny_resnet(), None, config, Owner.create())
    read = {number: Evidence(config.method, 64, 64, -64.0, 64.0, subkey=number, **fields) for number in (1, 2)}
    assert below_target(key, combine(list(read.values()), config.method)) == []
    read[2].log2_p = -3.0
    (said,) = below_target(key, combine(list(read.values()), config.method))
    assert "has log2 p = -3 under sub-key 2, and -32 is the least" in said
