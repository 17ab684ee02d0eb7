"""A first layer that sees its pictures turned is told, whatever the order and scale of its channels; another training is not taken for it."""

import pytest
import torch

from hf_watermark.verification.alignment.kernels import turned_in_words


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_turned_first_layer(quarters, mirrored):
    torch.manual_seed(0)
    reference = {"stem.weight": torch.randn(32, 3, 7, 7), "next.weight": torch.randn(32, 32, 3, 3)}
    kernels = reference["stem.weight"][torch.randperm(32)] * torch.randn(32, 1, 1, 1)
    kernels = (kernels.flip(-1) if mirrored else kernels).rot90(quarters, (2, 3))
    said = turned_in_words({"a": kernels}, reference)
    assert bool(said) == (mirrored or quarters > 0)
    assert turned_in_words({"a": torch.randn(32, 3, 7, 7)}, reference) == ""
