"""Other numbers, same answers: scales, signs, dead channels, and coordinates that a reference brings back."""

import copy

import pytest
import torch
from disguises import IMAGES, WAYS, Disguise, check, look

from hf_watermark.attacks import DummyNeurons, Permute, Rescale


BLOCK = "resnet.encoder.stages.1.layers.0.layer"
FIRST, SECOND = f"{BLOCK}.0", f"{BLOCK}.1"


def changed(change):
    def make(state):
        change(state)
        return state

    return Disguise(make)


def rows(state, factors):
    """Rows of the carrier and the statistics of the normalisation behind it."""
    state[f"{SECOND}.convolution.weight"] *= factors[:, None, None, None]
    state[f"{SECOND}.normalization.running_mean"] *= factors
    # var / f^2 + eps is not (var + eps) / f^2, so the weight takes up what is left.
    variance = state[f"{SECOND}.normalization.running_var"]
    scaled = (variance * factors**2 + 1e-5).sqrt() / (variance + 1e-5).sqrt()
    state[f"{SECOND}.normalization.running_var"] *= factors**2
    state[f"{SECOND}.normalization.weight"] *= scaled / factors


def scaled_rows(state):
    rows(state, torch.logspace(-2, 2, 64))


def negated_rows(state):
    rows(state, 1 - 2 * (torch.arange(64) % 2).float())


def tiny_rows(state):
    """Half of the rows at 1e-30: their squares do not exist in float32, and variance gives way to epsilon."""
    factors = torch.where(torch.arange(64) % 2 == 0, 1e-30, 1.0)
    norm = f"{SECOND}.normalization"
    keep = {name: state[f"{norm}.{name}"].clone() for name in ("running_mean", "running_var", "weight")}
    state[f"{SECOND}.convolution.weight"] *= factors[:, None, None, None]
    small = factors < 1
    slope = keep["weight"] / (keep["running_var"] + 1e-5).sqrt()
    state[f"{norm}.running_mean"] = keep["running_mean"] * factors
    state[f"{norm}.running_var"] = torch.where(small, torch.zeros(64), keep["running_var"])
    state[f"{norm}.weight"] = torch.where(small, slope * 1e-5**0.5 / factors, keep["weight"])


def dead_channel(size):
    """A channel that is always 0 behind its activation, and weights of any size that read it."""

    def change(state):
        state[f"{FIRST}.normalization.weight"][5] = 0
        state[f"{FIRST}.normalization.bias"][5] = -1
        state[f"{SECOND}.convolution.weight"][:, 5] = size

    return change


def dead_twin(state):
    """The base of comparison: the marked model itself has that channel dead."""
    dead_channel(0.0)(state)


SAME = {
    "rows scaled": changed(scaled_rows),
    "rows negated through BatchNorm": changed(negated_rows),
    "rows of 1e-30": changed(tiny_rows),
}
DEAD = {f"dead channel, {size:g}": changed(dead_channel(size)) for size in (1e30, -1e30, 1e10, 1e38)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SAME)
def test_other_factors(name, way, resnet, hub, tmp_path):
    check(SAME[name], resnet, tmp_path, way, hub)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DEAD)
def test_what_a_dead_channel_is_multiplied_by(name, way, resnet, hub, tmp_path):
    """Answers equal those of the marked model with the same channel dead: 1e30 and 0 cannot be told apart from outside."""
    state = resnet.state
    dead_twin(state)
    twin = copy.deepcopy(resnet.model)
    twin.load_state_dict(state)
    base = copy.copy(resnet)
    object.__setattr__(base, "model", twin.eval())
    DEAD[name].write(resnet.state, tmp_path)
    assert DEAD[name].difference(base, tmp_path) <= 1e-4
    verdict, reason = look(resnet, tmp_path, way, hub)
    # A dead channel spoils every group of its consumer; what one opened sub-key has elsewhere need not reach level N under every key.
    allowed = ["mark found", "inconclusive"] if way == "judge" else ["mark found"]
    assert str(verdict) in allowed, reason


ATTACKS = {"permuted": Permute(), "rescaled": Rescale(), "channels added": DummyNeurons()}


@pytest.mark.parametrize("extra", [None, "dead"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_reference_brings_coordinates_back(name, extra, resnet, tmp_path):
    model = copy.deepcopy(resnet.model)
    if extra:
        state = model.state_dict()
        dead_twin(state)
    before = model(IMAGES).logits.detach()
    other = ATTACKS[name](model, [{"pixel_values": IMAGES[0]}])
    if extra:  # behind the attack the dead channel has another number
        state = other.state_dict()
        dead = state[f"{FIRST}.normalization.weight"] == 0
        state[f"{SECOND}.convolution.weight"][:, dead] = 1e30
    with torch.no_grad():
        assert (other.eval()(IMAGES).logits - before).abs().max() <= 1e-4
    Disguise(lambda state: dict(other.state_dict())).write({}, tmp_path)
    verdict, reason = look(resnet, tmp_path, "reference")
    assert str(verdict) == "mark found", reason
