"""Which changes a network's graph allows; torch-pruning's dependency graph is the oracle for coupled channels."""

import copy

import pytest
import torch
import torch_pruning
from torch import nn
from zoo import BUILDERS, build, images_for, logits

from hf_watermark.backbones.symmetry import Change, Moved, change_stored, fold, symmetry_of, unfold


ALL = [name for name in BUILDERS if name not in ("deeplab mobilenet_v2", "timm mobilenetv2")]
# PROTOCOL.md §5.1: what is free in each family, as the set of space kinds.
KINDS = {
    "transformers resnet": {"permutation"},
    "transformers resnet bottleneck": {"permutation"},
    "transformers vit": {"permutation", "orthogonal", "heads", "head"},
    "transformers swin": {"permutation", "orthogonal", "heads", "head"},
    "transformers convnext": {"permutation"},
    "transformers mobilenet_v2": {"permutation", "linear"},
    "timm mobilenetv3": {"permutation", "linear"},
    "timm swin": {"permutation", "orthogonal", "heads", "head"},
    "timm vit": {"permutation", "orthogonal", "heads", "head"},
    "plain timm vgg_bn": {"permutation"},
    "deeplab mobilenet_v2": {"permutation", "linear"},
}


def of(name):
    model = build(name)
    return model, symmetry_of(model, images_for(name, 1))


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_spaces_are_those_of_the_family(name):
    _, symmetry = of(name)
    assert {space.kind for space in symmetry.spaces} - {"fixed"} == KINDS[name]
    # Only the logits are fixed.
    assert [space.size for space in symmetry.spaces if space.kind == "fixed"] == [4]


def test_scales_are_free_through_relu_and_not_through_gelu_or_relu6():
    assert set(of("timm resnet18")[1].scales) == {"positive", "none"}
    for name in ("timm vit", "timm convnext", "timm mobilenetv2"):
        assert set(of(name)[1].scales) == {"none"}
    # Gates of squeeze-excite have no scale of their own; the ReLU blocks do.
    _, symmetry = of("timm mobilenetv3")
    kinds = {}
    for name, axes in symmetry.axes.items():
        for axis in axes:
            kinds[name, axis.flow] = symmetry.scales[axis.segments[0].scale]
    assert kinds["timm_model.blocks.0.0.se.conv_expand.weight", "out"] == "none"
    assert kinds["timm_model.blocks.1.0.conv_pw.weight", "out"] == "positive"
    assert kinds["timm_model.blocks.2.0.conv_pw.weight", "out"] == "none"  # hard-swish


@pytest.mark.parametrize("name", ALL)
def test_folded_coordinates_compute_the_same(name):
    model, symmetry = of(name)
    images, state = images_for(name), model.state_dict()
    other = copy.deepcopy(model)
    other.load_state_dict(unfold(symmetry, fold(symmetry, state), state))
    wanted = logits(model, images)
    assert torch.allclose(logits(other, images), wanted, atol=1e-4 * float(wanted.abs().max()))
    # Folding twice changes nothing more.
    once, twice = fold(symmetry, state), fold(symmetry, other.state_dict())
    assert all(torch.allclose(once[key], twice[key], atol=1e-4) for key in once)


ORACLE = [
    "transformers resnet",
    "timm resnet18",
    "timm mobilenetv3",
    "transformers mobilenet_v2",
    "plain timm vgg_bn",
    "timm convnext",
    "timm vit",
]


@pytest.mark.parametrize("name", ORACLE)
def test_layers_that_share_channels_are_those_that_torch_pruning_couples(name):
    model, symmetry = of(name)
    graph = torch_pruning.DependencyGraph().build_dependency(model, images_for(name, 1))
    layers = {module: key for key, module in model.named_modules()}
    spaces = {}
    for tensor, axes in symmetry.axes.items():
        for axis in axes:
            if axis.flow == "out" and tensor.endswith(".weight") and len(axis.segments) == 1:
                spaces[tensor.removesuffix(".weight")] = axis.segments[0].space
    compared = 0
    for layer, space in spaces.items():
        module = model.get_submodule(layer)
        if not isinstance(module, nn.Conv2d | nn.Linear) or symmetry.spaces[space].kind == "fixed":
            continue
        prune = (
            torch_pruning.prune_conv_out_channels
            if isinstance(module, nn.Conv2d)
            else torch_pruning.prune_linear_out_channels
        )
        group = graph.get_pruning_group(module, prune, idxs=[0])
        coupled = {
            layers[item.target.module]
            for item, _ in group
            if item.handler.__name__ in ("prune_out_channels", "prune_depthwise_conv_out_channels")
            and isinstance(item.target.module, nn.Conv2d | nn.Linear)
        }
        same = {other for other, number in spaces.items() if number == space} & {
            layers[m] for m in layers if isinstance(m, nn.Conv2d | nn.Linear)
        }
        assert coupled & set(spaces) == same, layer
        compared += 1
    assert compared >= 4


def test_a_wrong_coupling_would_be_seen():
    """The function-preservation tests fail for a symmetry that is none: a space permuted in one layer only."""
    model, symmetry = of("timm resnet18")
    space = next(n for n, item in enumerate(symmetry.spaces) if item.kind == "permutation")
    victim = next(name for name, axis in symmetry.touching(space) if axis.flow == "in")
    symmetry.axes[victim] = [axis for axis in symmetry.axes[victim] if axis.flow != "in"]
    change = Change({space: Moved.permutation(torch.arange(symmetry.spaces[space].size).flip(0))})
    other = copy.deepcopy(model)
    other.load_state_dict(change_stored(change, symmetry, model.state_dict()))
    images = images_for("timm resnet18")
    assert not torch.allclose(logits(other, images), logits(model, images), atol=1e-2)


def test_what_is_not_in_the_folded_tensors_is_zero_and_never_the_references():
    model, symmetry = of("transformers vit")
    state = model.state_dict()
    folded = fold(symmetry, state)
    lost = next(name for name in folded if name.endswith("fc2.weight"))
    del folded[lost]
    assert not unfold(symmetry, folded, state)[lost].any()


class Shuffled(nn.Module):
    """Operations without a rule, and a channel that meets another one of its own layer."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, images):
        hidden = self.one(images).relu()
        hidden = self.two(hidden + hidden.flip(1)).relu()
        return self.three(hidden.cumsum(1)).mean((2, 3))


def test_what_has_no_rule_is_left_alone():
    model = Shuffled().eval()
    symmetry = symmetry_of(model, torch.randn(1, 3, 4, 4))
    assert all(space.kind == "fixed" for space in symmetry.spaces)
