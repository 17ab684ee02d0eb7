"""Arguments of `verify` that are of another kind than it takes: one sentence that names them, before anything is read."""

import pytest
from torch import nn

from hf_watermark import InvalidInput, WatermarkKey
from hf_watermark.verification.reference import open_reference
from hf_watermark.verifying import self_check


@pytest.mark.parametrize("looks", [0, -1, 2.5, float("nan"), 1e308, "1", True, None, 2**2000])
def test_looks(looks):
    with pytest.raises(InvalidInput, match="`looks` is .*give a whole number"):
        self_check(WatermarkKey.__new__(WatermarkKey), looks)


@pytest.mark.parametrize("beacon", [0, "00" * 32, [1]])
def test_beacon(beacon):
    with pytest.raises(InvalidInput, match="`beacon` is .*give the bytes"):
        self_check(WatermarkKey.__new__(WatermarkKey), 1, beacon)


@pytest.mark.parametrize("reference", [7, nn.Linear, lambda images: images])
def test_reference(reference):
    with pytest.raises(InvalidInput, match="`reference` is a .*give the owner's model"):
        open_reference(reference)
