"""Folded coordinates: the same function, blind to rescaling, differentiable, and refused where they would be wrong."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_watermark import InvalidInput, wrap_timm
from hf_watermark.backbones import FoldedNet, refuse_half_precision


CLASSES = 4


class Plain(nn.Module):
    """Conv, BatchNorm, ReLU, head; subclasses change one thing."""

    def __init__(self, affine: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, affine=affine)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, CLASSES)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(self.conv(images)).relu())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images).mean(dim=(2, 3)))


class PreActivation(Plain):
    def features(self, images):
        hidden = self.conv(images)
        return hidden + self.second(self.norm(hidden.relu()))


class ReadsTheConvolutionToo(Plain):
    def features(self, images):
        hidden = self.conv(images)
        return self.second(self.norm(hidden)) + hidden


class InPlaceActivation(Plain):
    def features(self, images):
        return self.second(self.norm(nn.functional.relu(self.conv(images), inplace=True)))


class TwoNormsOnOneConvolution(Plain):
    def __init__(self):
        super().__init__()
        self.other = nn.BatchNorm2d(8)

    def features(self, images):
        hidden = self.conv(images)
        return self.second(self.norm(hidden).relu()) - self.other(hidden)


class Shared(Plain):
    """One convolution, called twice, before two BatchNorms."""

    def __init__(self):
        super().__init__()
        self.other = nn.BatchNorm2d(8)

    def features(self, images):
        return self.other(self.second(self.norm(self.second(self.conv(images)))))


class SharedNorm(Plain):
    """One BatchNorm, called twice, behind two convolutions."""

    def features(self, images):
        return self.norm(self.second(self.norm(self.conv(images))))


class UsesTheWeightToo(Plain):
    def features(self, images):
        return self.second(self.norm(self.conv(images))) + nn.functional.conv2d(images, self.conv.weight, padding=1)


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(3 * 16 * 16, 8, bias=False), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images):
        return self.head(self.norm(self.first(images.flatten(1))).relu())


def lively(model: nn.Module) -> nn.Module:
    """Running statistics and affine parameters as training leaves them."""
    generator = torch.Generator().manual_seed(3)
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.2, 3.0, generator=generator)
            if layer.affine:
                layer.weight.data.uniform_(-1.5, 1.5, generator=generator)
                layer.bias.data.normal_(generator=generator)
    return model.eval()


def pictures(count: int = 3, side: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def relative_error(answers: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((answers - wanted).abs().max() / wanted.abs().max())


def rescale(model: nn.Module, net: FoldedNet, factor: float) -> nn.Module:
    """Multiplies every folded layer by `factor` and tells its BatchNorm, so that no answer changes."""
    model = copy.deepcopy(model)
    for item in net.folds:
        if item.layer is None:
            continue
        layer, norm = model.get_submodule(item.layer), model.get_submodule(item.norm)
        layer.weight.data *= factor
        if layer.bias is not None:
            layer.bias.data *= factor
        norm.running_mean *= factor
        norm.running_var.copy_(factor**2 * (norm.running_var + norm.eps) - norm.eps)
    return model


# --- The same function ------------------------------------------------------------------------------------------------


def test_the_folded_net_is_the_model(any_backbone, ask):
    model, images = any_backbone
    wanted = ask(model, images)
    net = FoldedNet(model, images)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert len(net.folds) == len(norms)
    with torch.no_grad():
        assert relative_error(net(net.coordinates(model), images), wanted) < 1e-4
    assert not any("running" in name for name in net.coordinates(model))


@pytest.mark.parametrize("architecture", ["test_efficientnet", "mobilenetv3_small_050", "resnet10t"])
def test_timm_with_activations_inside_batchnorm(architecture, ask):
    module = timm.create_model(architecture, num_classes=CLASSES)
    for model in (lively(module), lively(wrap_timm(module, architecture, CLASSES))):
        images = pictures(side=64)
        net = FoldedNet(model, images)
        assert net.folds and all(item.layer for item in net.folds)
        with torch.no_grad():
            assert relative_error(net(net.coordinates(model), images), ask(model, images)) < 1e-4


@pytest.mark.parametrize("make", [Plain, Dense, lambda: Plain(affine=False)], ids=["conv", "linear", "not affine"])
def test_hand_made_nets(make, ask):
    model, images = lively(make()), pictures()
    net = FoldedNet(model, images)
    assert [item.layer is None for item in net.folds] == [False]
    with torch.no_grad():
        assert relative_error(net(net.coordinates(model), images), ask(model, images)) < 1e-4


@pytest.mark.parametrize("affine", [True, False])
def test_a_batchnorm_of_its_own_keeps_slope_and_shift(affine, ask):
    model, images = lively(PreActivation(affine)), pictures()
    net = FoldedNet(model, images)
    [item] = net.folds
    weights = net.coordinates(model)
    assert item.layer is None and weights["norm.weight"].shape == weights["norm.bias"].shape == (8,)
    assert torch.equal(weights["conv.weight"], model.conv.weight)
    with torch.no_grad():
        assert relative_error(net(weights, images), ask(model, images)) < 1e-4


def test_without_batchnorm_nothing_is_folded(build_backbone, sample_images):
    model = build_backbone("transformers vit")
    net = FoldedNet(model, sample_images("transformers vit"))
    weights = net.coordinates(model)
    assert net.folds == [] and set(weights) == {name for name, _ in model.named_parameters()}
    assert all(weights[name] is parameter for name, parameter in model.named_parameters())


def test_unfolded_coordinates_are_the_parameters(ask):
    model, images = lively(Plain()), pictures()
    net = FoldedNet(model, images, fold=False)
    assert set(net.coordinates(model)) == {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        assert torch.equal(net(net.coordinates(model), images), ask(model, images))


def test_folded_weights_are_those_of_the_formula():
    model = lively(Plain())
    weights = FoldedNet(model, pictures()).coordinates(model)
    slope = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    torch.testing.assert_close(weights["conv.weight"], model.conv.weight * slope[:, None, None, None])
    torch.testing.assert_close(
        weights["conv.bias"], slope * (model.conv.bias - model.norm.running_mean) + model.norm.bias
    )
    assert set(weights) == {"conv.weight", "conv.bias", "second.weight", "head.weight", "head.bias"}


def test_weights_held_by_a_module_are_its_parameters():
    model, images = lively(Plain()), pictures()
    net = FoldedNet(model, images)
    held = {name: tensor.detach().clone() for name, tensor in net.coordinates(model).items()}
    module = net.holding(held)
    with torch.no_grad():
        assert torch.equal(module(images), net(held, images))
        held["conv.weight"].mul_(2)
        assert torch.equal(module(images), net(held, images))
    assert {name for name, _ in module.named_parameters()} == set(held)


# --- Canonical scale --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.1, 0.7, 30.0])
@pytest.mark.parametrize("name", ["transformers resnet", "timm mobilenetv3"])
def test_rescaling_a_layer_against_its_batchnorm_changes_nothing(build_backbone, sample_images, ask, name, factor):
    model, images = build_backbone(name), sample_images(name)
    net = FoldedNet(model, images)
    attacked = rescale(model, net, factor)
    assert relative_error(ask(attacked, images), ask(model, images)) < 1e-4
    ours, theirs = net.coordinates(model), net.coordinates(attacked)
    for tensor, other in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(other, tensor, rtol=1e-4, atol=1e-6)
    unfolded = FoldedNet(model, images, fold=False)
    names = [f"{item.layer}.weight" for item in net.folds]
    ours, theirs = unfolded.coordinates(model), unfolded.coordinates(attacked)
    assert names and not any(torch.allclose(ours[weight], theirs[weight]) for weight in names)


def test_running_statistics_are_part_of_the_coordinates():
    model, images = lively(Plain()), pictures()
    net = FoldedNet(model, images)
    for name in ("running_mean", "running_var"):
        other = copy.deepcopy(model)
        getattr(other.norm, name).add_(0.1)
        assert not torch.allclose(net.coordinates(other)["conv.bias"], net.coordinates(model)["conv.bias"])


# --- Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Plain, PreActivation, Dense])
def test_gradients_are_those_of_the_model(make):
    model, images = lively(make()), pictures()
    names, parameters = zip(*model.named_parameters(), strict=True)
    wanted = torch.autograd.grad(model(images).square().sum(), parameters)
    net = FoldedNet(model, images)
    seen = torch.autograd.grad(net(net.coordinates(model), images).square().sum(), parameters)
    for name, mine, theirs in zip(names, seen, wanted, strict=True):
        assert theirs.any(), name
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("name", ["transformers resnet", "timm mobilenetv3", "transformers vit"])
def test_noisy_passes_move_no_running_statistic(build_backbone, sample_images, name):
    model, images = build_backbone(name).train(), sample_images(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    net = FoldedNet(model, images)
    template = {key: tensor.clone() for key, tensor in net.template.named_buffers()}
    for _ in range(3):
        noisy = {key: tensor + 0.01 * torch.randn_like(tensor) for key, tensor in net.coordinates(model).items()}
        net(noisy, images).sum().backward()
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(torch.equal(template[key], tensor) for key, tensor in net.template.named_buffers())
    assert model.training and not net.template.training


def test_the_model_keeps_its_modes():
    model = lively(Plain()).train()
    model.norm.eval()  # a BatchNorm that its owner froze
    FoldedNet(model, pictures())
    assert model.training and model.conv.training and not model.norm.training


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(kind):
    model = lively(Plain())
    model.head.to(kind)
    name = str(kind).removeprefix("torch.")
    for call in (lambda: refuse_half_precision(model), lambda: FoldedNet(model, pictures())):
        with pytest.raises(InvalidInput, match=f"head.weight is {name}: .* needs float32 .* `dtype=torch.float32`"):
            call()


def test_nets_that_folding_would_change_are_refused():
    with pytest.raises(InvalidInput, match=r"folding the BatchNorms changes the answers .* `moves='parameters'`"):
        FoldedNet(lively(UsesTheWeightToo()), pictures())
    FoldedNet(lively(UsesTheWeightToo()), pictures(), fold=False)  # the way out that the message names


@pytest.mark.parametrize("make", [ReadsTheConvolutionToo, TwoNormsOnOneConvolution, Shared, SharedNorm])
def test_an_output_that_others_read_too_keeps_its_norm_apart(make, ask):
    model, images = lively(make()), pictures()
    net = FoldedNet(model, images)
    assert {item.layer for item in net.folds} == {None}
    with torch.no_grad():
        assert relative_error(net(net.coordinates(model), images), ask(model, images)) < 1e-4


def test_an_in_place_activation_is_no_direct_neighbour(ask):
    # The activation returns the convolution's own tensor object, which the BatchNorm then reads.
    model, images = lively(InPlaceActivation()), pictures()
    net = FoldedNet(model, images)
    assert [item.layer for item in net.folds] == [None]
    with torch.no_grad():
        assert relative_error(net(net.coordinates(model), images), ask(model, images)) < 1e-4
