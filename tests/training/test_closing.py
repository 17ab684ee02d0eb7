"""What an owner is told when a training has ended."""

import logging

import pytest
from tiny import patterned_images, tiny_resnet

from hf_watermark import FunctionCoupledConfig, Owner, plan_key
from hf_watermark.evidence import Access, Evidence
from hf_watermark.training.closing import report


@pytest.fixture(scope="module")
def key():
    config = FunctionCoupledConfig(target_log2_p=-96.0, pool_per_class=4, images_per_rule=4)
    return plan_key(tiny_resnet(), patterned_images(), config, Owner.create())


def told(key, caplog, log2_p, bound=False, problems=()):
    fields = {"null": "", "access": frozenset({Access.LABELS}), "bound": bound}
    evidence = Evidence("function_coupled", 100, 192, log2_p=log2_p, log2_e=-log2_p, **fields).decide()
    with caplog.at_level(logging.WARNING, logger="hf_watermark"):
        report(key, evidence, "`trigger_ratio`", problems)
    return evidence, caplog.text


def test_a_mark_that_is_in_lacks_a_beacon_only(key, caplog):
    evidence, text = told(key, caplog, -115.0)
    assert "the mark is in the trained model (log2 p = -115), but its key is bound to no public beacon" in text
    assert "could not be read back" not in text and not evidence.warnings


def test_one_below_its_target_is_named_whatever_the_level(key, caplog):
    for bound in (True, False):
        evidence, text = told(key, caplog, -70.0, bound)
        assert len(evidence.warnings) == 1 and "its target was -96" in text


def test_one_that_is_not_in_is_not_to_be_claimed(key, caplog):
    for log2_p, problems in ((-30.0, ()), (-115.0, ("`before_step` was left out",))):
        caplog.clear()
        evidence, text = told(key, caplog, log2_p, problems=problems)
        assert "could not be read back from the trained model" in text and "raise `trigger_ratio`" in text
        assert all(problem in text for problem in problems) and not evidence.warnings


def test_nothing_is_said_of_one_that_reached_it(key, caplog):
    evidence, text = told(key, caplog, -200.0)
    assert evidence.found and not text
