"""Weights that the forward pass changes before it uses them: what that leaves free is seen, and turns no bit."""

import copy

import pytest
import timm
import torch
from timm.layers import GroupNormAct, StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import nn
from torch.ao.nn.qat import Conv2d as RoundedConv2d
from torch.ao.quantization import get_default_qat_qconfig
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from transformers import BitConfig, BitForImageClassification
from zoo import lively

from hf_watermark import GreedyResidualsConfig, InvalidInput, Owner, mark_model, verify
from hf_watermark.backbones import layout_of
from hf_watermark.backbones.symmetry import Change, Moved, change_stored, fold, symmetry_of, unfold
from hf_watermark.backbones.treatment import Treatment, observe
from hf_watermark.evidence import Verdict


CONFIG = GreedyResidualsConfig(bits=160, group_size=8, subkeys=2)
ANY_BUDGET = 1e9
IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Standardised(nn.Conv2d):
    """Rows without mean and of one size, whatever the user calls it."""

    def forward(self, images):
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return functional.conv2d(images, (self.weight - mean) / deviation / 16, self.bias, padding=self.padding)


class Gained(nn.Conv2d):
    """Standardised, times a vector that trains."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.size = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, images):
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return functional.conv2d(
            images, self.size * (self.weight - mean) / deviation / 16, self.bias, padding=self.padding
        )


class Sum(nn.Conv2d):
    """Two weights of which only the sum matters."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.other = nn.Parameter(torch.randn_like(self.weight))

    def forward(self, images):
        return functional.conv2d(images, self.weight + self.other, self.bias, padding=self.padding)


class Net(nn.Module):
    """A chain of layers of one kind, without and with a vector behind each."""

    def __init__(self, kind, width: int = 48, vectors: int = 0, scalars: int = 0, normed: bool = False):
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.parts = nn.ModuleList(kind(width, width, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) if normed else nn.Identity() for _ in range(3))
        self.vectors = nn.ParameterList(torch.ones(1, width, 1, 1) for _ in range(3 * vectors))
        self.numbers = nn.ParameterList(torch.ones(1) for _ in range(3 * scalars))
        self.leave = nn.Linear(width, 10)

    def forward(self, images):
        images = functional.relu(self.enter(images))
        for number, part in enumerate(self.parts):
            branch = self.norms[number](part(images))
            for factor in [*self.vectors[number::3], *self.numbers[number::3]]:
                branch = branch * factor
            images = functional.relu(branch)
        return self.leave(images.mean((2, 3)))


def plain(*arguments, **options):
    return nn.Conv2d(*arguments, **options)


def rounded(*arguments, **options):
    return RoundedConv2d(*arguments, qconfig=get_default_qat_qconfig(), **options)


KINDS = {
    "plain": (plain, "parts.1.weight", Treatment()),
    "standardised": (Standardised, "parts.1.weight", Treatment(False, True)),
    "gained": (Gained, "parts.1.weight", Treatment(False, True, "parts.1.size")),
    "weight norm": (
        lambda *given, **options: weight_norm(nn.Conv2d(*given, **options)),
        "parts.1.parametrizations.weight.original1",
        Treatment(False, False, "parts.1.parametrizations.weight.original0"),
    ),
    "weight norm by hooks": (
        lambda *given, **options: nn.utils.weight_norm(nn.Conv2d(*given, **options)),
        "parts.1.weight_v",
        Treatment(False, False, "parts.1.weight_g"),
    ),
    "rounded": (rounded, "parts.1.weight", Treatment(False)),
    "spectral norm": (
        lambda *given, **options: spectral_norm(nn.Conv2d(*given, **options)), "parts.1.parametrizations.weight.original", None,
    ),
    "sum": (Sum, "parts.1.weight", None),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_lies_between_a_weight_and_its_use_is_seen(kind):
    layer, name, wanted = KINDS[kind]
    net = Net(layer)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert observe(net).treatments[name] == wanted
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    carriers = {carrier.name: carrier for carrier in layout_of(net)} if wanted else {}
    if wanted:
        assert (carriers[name].centred, carriers[name].scale) == (wanted.centred, wanted.scale)
    else:
        with pytest.raises(InvalidInput, match="no weight of this Net"):
            layout_of(net)


def test_layers_named_by_hand_are_read_as_they_are_used():
    [carrier] = layout_of(Net(Standardised), ["parts.0.weight"])
    assert carrier.centred
    with pytest.raises(InvalidInput, match="something else than its rows"):
        layout_of(Net(Sum), ["parts.0.weight"])


@pytest.mark.parametrize("factors", [{"vectors": 2}, {"scalars": 1}, {"vectors": 1, "normed": True}])
def test_a_weight_whose_signs_two_factors_or_one_number_turn_carries_nothing(factors):
    with pytest.raises(InvalidInput, match="no weight of this Net"):
        layout_of(Net(plain, **factors))


def free_changes(model: nn.Module) -> nn.Module:
    """What standardising leaves free: a number added to each row, a factor, and the sign of a row with that of its gain."""
    changed, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    parameters = dict(changed.named_parameters())
    for name, how in observe(model).treatments.items():
        if how is None or how.direct:
            continue
        weight = parameters[name].data
        shape = (len(weight), *[1] * (weight.ndim - 1))
        weight.mul_(torch.rand(shape, generator=generator) + 0.5)
        weight.add_(how.centred * 0.3 * torch.randn(shape, generator=generator))
        if how.scale:
            weight[::2] *= -1
            parameters[how.scale].data[::2] *= -1
    return changed


def bit() -> nn.Module:
    config = BitConfig(num_labels=10, hidden_sizes=[128, 256], depths=[1, 2], embedding_size=64, image_size=32)
    return BitForImageClassification(config)


def trained(nfnet: nn.Module) -> nn.Module:
    """The last layer of a branch begins with gains of zero, and then says nothing."""
    for name, parameter in lively(nfnet).named_parameters():
        if name.endswith("gain"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return nfnet


NETS = {
    "standardised": lambda: lively(Net(Standardised)),
    "gained": lambda: lively(Net(Gained)),
    "weight norm": lambda: lively(Net(KINDS["weight norm"][0])),
    "standardised, normed": lambda: lively(Net(Standardised, normed=True)),
    "nfnet": lambda: trained(timm.create_model("test_nfnet", num_classes=10)),
    "resnetv2": lambda: lively(
        ResNetV2((1, 2), (128, 256), num_classes=10, stem_type="same", conv_layer=StdConv2d, norm_layer=GroupNormAct)
    ),
    "bit": lambda: lively(bit()),
}


@pytest.mark.parametrize("method", ["greedy_residuals", "watermas"])
@pytest.mark.parametrize("name", NETS)
def test_free_changes_turn_no_bit(name, method):
    model = NETS[name]()
    config = CONFIG if method == "greedy_residuals" else {"method": method, "bits": 160, "subkeys": 2}
    marked, key = mark_model(model, config, Owner.create(), IMAGES, ANY_BUDGET)
    changed = free_changes(marked)
    ours, theirs = (as_logits(net.eval()(IMAGES[:2])) for net in (marked, changed))
    # Under the root there is a small number, so that factors of a row are not quite free.
    assert (ours - theirs).abs().max() < 0.03 * ours.abs().max()
    evidence = verify(changed, key)
    assert evidence.found and evidence.rate > 0.98
    assert verify(free_changes(model), key).verdict is Verdict.NOT_FOUND


def as_logits(output):
    return getattr(output, "logits", output)


def test_channels_of_standardised_layers_are_put_back():
    model = lively(Net(Gained, width=64))
    marked, key = mark_model(model, CONFIG, Owner.create(), IMAGES, ANY_BUDGET)
    symmetry = symmetry_of(marked)
    generator = torch.Generator().manual_seed(0)
    moved = {
        number: Moved.permutation(torch.randperm(space.size, generator=generator))
        for number, space in enumerate(symmetry.spaces)
        if space.kind == "permutation"
    }
    assert moved
    permuted = copy.deepcopy(marked)
    permuted.load_state_dict(change_stored(Change(moved), symmetry, marked.state_dict()))
    changed = free_changes(permuted)
    assert torch.allclose(changed(IMAGES), marked(IMAGES), rtol=1e-3, atol=1e-3)
    assert verify(changed, key).rate < 0.7
    assert verify(changed, key, reference=model).rate > 0.95
    assert not verify(free_changes(model), key, reference=model).found


def test_folding_standardised_rows_changes_no_answer():
    model = lively(Net(Gained, width=64))
    symmetry = symmetry_of(model)
    copied = copy.deepcopy(model)
    copied.load_state_dict(unfold(symmetry, fold(symmetry, free_changes(model).state_dict()), model.state_dict()))
    assert torch.allclose(copied(IMAGES), model(IMAGES), rtol=1e-3, atol=1e-3)
