"""Kinds of operations, one small plain module each: what is free in it, and that a change of it changes no answer and is put back."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from zoo import lively

from hf_watermark.attacks.symmetric import random_factors
from hf_watermark.backbones.symmetry import Change, Moved, change_stored, fold, symmetry_of, unfold
from hf_watermark.verification.alignment import Aligner


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Kind(nn.Module):
    """A stem, what is tested, and a head."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 5)

    def forward(self, images):
        return self.head(self.inner(self.stem(images)).mean((2, 3)))


class PositionsByALayer(Kind):
    """A table of positions goes through a layer of its own, as in networks that compute their position biases."""

    def __init__(self):
        super().__init__()
        self.register_buffer("places", torch.arange(64.0).reshape(1, 1, 8, 8) / 64)
        self.place, self.last = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1)

    def inner(self, hidden):
        return self.last((hidden + self.place(self.places)).relu())


class OwnPrecision(Kind):
    """A part under its own precision and without gradients, which an exporter makes a graph in the graph."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)

    def inner(self, hidden):
        with torch.autocast("cpu", enabled=False):
            hidden = self.one(hidden).relu()
        with torch.no_grad():
            return self.two(hidden)


class NormBehindAShortcut(Kind):
    """The shortcut begins at the convolution, not at its normalisation."""

    def __init__(self):
        super().__init__()
        self.norm, self.one, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def inner(self, hidden):
        return self.last((hidden + self.one(self.norm(hidden).relu())).relu())


class PartsOfALayer(Kind):
    """One layer writes a gate, channels that pass, and channels that a depthwise convolution reads: these never change places with the others."""

    def __init__(self):
        super().__init__()
        self.grow, self.deep, self.back = (
            nn.Conv2d(8, 24, 1),
            nn.Conv2d(4, 4, 3, padding=1, groups=4),
            nn.Conv2d(12, 8, 1),
        )

    def inner(self, hidden):
        gate, plain, deep = self.grow(hidden.relu()).split([12, 8, 4], dim=1)
        return self.back(functional.gelu(gate) * torch.cat([plain, self.deep(deep)], dim=1))


class Product(Kind):
    """Two branches that are multiplied, between depthwise convolutions, as in StarNet."""

    def __init__(self):
        super().__init__()
        self.before, self.after = (nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(2))
        self.one, self.two, self.back = nn.Conv2d(8, 12, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)

    def inner(self, hidden):
        seen = self.before(hidden)
        return hidden + self.after(self.back(functional.relu6(self.one(seen)) * self.two(seen)))


class Ghosts(Kind):
    """Half of the channels are written one by one from the other half, and both are read one by one again."""

    def __init__(self):
        super().__init__()
        self.cheap, self.both = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm, self.last = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1)

    def inner(self, hidden):
        hidden = hidden.relu()
        return self.last(self.norm(self.both(torch.cat([hidden, self.cheap(hidden)], dim=1))))


class SlopesAlone(Kind):
    """Normalisations without shifts: one that its reader holds, and one in front of padding, which stays."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.LayerNorm(8, bias=False), nn.LayerNorm(8, bias=False)
        self.grow, self.back, self.last = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

    def inner(self, hidden):
        seen = self.one(hidden.movedim(1, 3)).movedim(3, 1)
        hidden = hidden + self.back(self.grow(seen).relu())
        return self.last(self.two(hidden.movedim(1, 3)).movedim(3, 1)).relu()


class NumbersOfItsOwn(Kind):
    """One learned number for all channels is multiplied and one is added, as StarReLU does."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor([0.7])), nn.Parameter(torch.tensor([0.2]))
        self.gain = nn.Parameter(torch.tensor(1.3))
        self.grow, self.back = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)

    def inner(self, hidden):
        return hidden + self.gain * self.back(self.scale * self.grow(hidden).relu() ** 2 + self.shift)


# And of how many channels each has what is free.
KINDS = {
    PositionsByALayer: {"permutation": 8, "linear": 8},
    OwnPrecision: {"linear": 16, "permutation": 12},
    NormBehindAShortcut: {"permutation": 8, "linear": 8},
    PartsOfALayer: {"permutation": 8 + 8 + 4, "linear": 8},
    Product: {"permutation": 8 + 12},
    Ghosts: {"permutation": 8, "linear": 8},
    SlopesAlone: {"permutation": 8 + 12 + 8},
    NumbersOfItsOwn: {"permutation": 12, "linear": 8},
}


@pytest.fixture(params=list(KINDS), scope="module")
def case(request):
    torch.manual_seed(0)
    model = lively(request.param()).eval()
    return model, symmetry_of(model, IMAGES), KINDS[request.param]


def changed(symmetry, state):
    generator = torch.Generator().manual_seed(1)
    moves = {
        number: Moved.permutation(torch.randperm(space.size, generator=generator))
        for number, space in enumerate(symmetry.spaces)
        if space.kind in ("permutation", "orthogonal", "linear")
    }
    moved = change_stored(Change(moves), symmetry, state)
    return change_stored(Change(factors=random_factors(symmetry, 0.5, generator)), symmetry, moved)


def test_what_is_free(case):
    _, symmetry, free = case
    sizes = {}
    for space in symmetry.spaces:
        sizes[space.kind] = sizes.get(space.kind, 0) + space.size
    assert sizes == free | {"fixed": 5}  # the logits


@torch.no_grad()
def test_channels_that_changed_places_and_factors_change_no_answer(case):
    model, symmetry, _ = case
    other = copy.deepcopy(model)
    other.load_state_dict(changed(symmetry, model.state_dict()))
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    torch.testing.assert_close(other(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)


def test_an_alignment_without_carriers_puts_them_back(case):
    model, symmetry, _ = case
    state = model.state_dict()
    aligned = Aligner(model, [], IMAGES).align(changed(symmetry, state)).tensors
    wanted = unfold(symmetry, fold(symmetry, state), state)
    for name, _ in model.named_parameters():
        torch.testing.assert_close(aligned[name], wanted[name], rtol=1e-3, atol=1e-3, msg=name)


class Sequence(Kind):
    """Layers without biases and their normalisations, under numbers as blocks have them."""

    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(
            nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False)
        )

    def inner(self, hidden):
        return self.parts(hidden)


def test_biases_of_a_copy_without_its_normalisations_are_those_of_the_original():
    torch.manual_seed(0)
    model = lively(Sequence()).eval()
    symmetry, state = symmetry_of(model, IMAGES), model.state_dict()
    folded = fold(symmetry, state)
    copied = {name: tensor for name, tensor in folded.items() if not name.startswith("parts.1.")}
    assert "parts.0.bias" in copied and "parts.0.bias" not in state
    aligned = Aligner(model, [], IMAGES).align(copied)
    assert not aligned.report.blocks and not aligned.report.warnings
    wanted = unfold(symmetry, folded, state)
    assert wanted["parts.1.bias"].any()
    torch.testing.assert_close(aligned.tensors["parts.1.bias"], wanted["parts.1.bias"], rtol=1e-3, atol=1e-3)


class Resized(Kind):
    """Something of which no rule knows the channels is added to channels: these may not change places any more."""

    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Parameter(torch.randn(1, 8, 8, 8)), nn.Conv2d(8, 8, 1)

    def inner(self, hidden):
        return self.last((hidden + self.table.cumsum(1)).relu())


def test_channels_that_meet_something_unknown_are_held():
    torch.manual_seed(0)
    symmetry = symmetry_of(lively(Resized()).eval(), IMAGES)
    sizes = [(space.kind, space.size) for space in symmetry.spaces]
    assert sizes == [("fixed", 8), ("linear", 8), ("fixed", 5)]
