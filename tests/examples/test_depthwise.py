"""Depthwise convolutions by matrices compute what PyTorch's do."""

from pathlib import Path

import pytest
import torch
from torch import nn


BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def depthwise():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import depthwise

        yield depthwise


@pytest.mark.parametrize(("side", "height", "width"), [(3, 2, 2), (5, 2, 2), (5, 4, 4), (3, 3, 5), (5, 1, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_the_same(depthwise, side: int, height: int, width: int, bias: bool):
    plain = nn.Conv2d(6, 6, side, padding=side // 2, groups=6, bias=bias).double()
    matrices = nn.Conv2d(6, 6, side, padding=side // 2, groups=6, bias=bias).double()
    matrices.load_state_dict(plain.state_dict())
    depthwise.faster(nn.Sequential(matrices))
    images = torch.randn(3, 6, height, width, dtype=torch.float64)
    answers = []
    for layer in (plain, matrices):
        asked = images.clone().requires_grad_()
        outputs = layer(asked)
        outputs.sin().sum().backward()
        answers.append([outputs, asked.grad, *(weight.grad for weight in layer.parameters())])
    assert matrices.forward.__func__ is depthwise.SmallDepthwise.forward
    for first, second in zip(*answers, strict=True):
        torch.testing.assert_close(first, second)


def test_other_convolutions_stay(depthwise):
    others = [
        nn.Conv2d(6, 6, 3, padding=1),
        nn.Conv2d(6, 12, 3, padding=1, groups=6),
        nn.Conv2d(6, 6, 3, padding=1, stride=2, groups=6),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6),
        nn.Conv2d(6, 6, 2, padding=1, groups=6),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, padding_mode="reflect"),
    ]
    assert {type(layer) for layer in depthwise.faster(nn.ModuleList(others))} == {nn.Conv2d}
