"""Marks in finished weights: read back, cheap, and built of parts that do what they say."""

import copy

import pytest
import torch
from shops import small_model
from torch import nn
from torch.nn import functional
from transformers import ResNetConfig, ResNetModel, Siglip2VisionConfig, Siglip2VisionModel
from zoo import BUILDERS, build, images_for

from hf_watermark import GreedyResidualsConfig, InvalidInput, Owner, WaterMASConfig, mark_model, verify
from hf_watermark.evaluation.digits import build_digits_model
from hf_watermark.keys import start_digest
from hf_watermark.marking import measure_fidelity
from hf_watermark.marking.inputs import Inputs, _rows_of, layer_inputs
from hf_watermark.marking.pictures import dead_leaves
from hf_watermark.marking.rows import compensated, output_shift
from hf_watermark.methods.greedy_residuals.projection import expected_sum, project
from hf_watermark.methods.greedy_residuals.residuals import greedy_mean


CONFIGS = {
    "greedy_residuals": GreedyResidualsConfig(bits=24, group_size=8, subkeys=2),
    "watermas": WaterMASConfig(bits=24, subkeys=2),
}
ANY_BUDGET = 1e9


@pytest.fixture(scope="module")
def owner():
    return Owner.create()


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("name", BUILDERS)
def test_every_backbone_is_marked_and_read_back(name, method, owner):
    model = build(name)
    before = copy.deepcopy(model.state_dict())
    images = images_for(name, 32)
    try:
        marked, key = result = mark_model(model, CONFIGS[method], owner, images, ANY_BUDGET)
    except InvalidInput as error:
        assert "do not fit" in str(error) or "more than a tenth" in str(error), error
        pytest.skip(f"too small: {error}")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert verify(marked, key).rate == 1
    assert verify(model, key).rate < 1
    assert key.context.start == start_digest(before)
    assert result.fidelity.images == 16
    assert not result.fidelity.synthetic
    assert max(result.fidelity.layers.values()) < 1


@pytest.mark.parametrize("method", CONFIGS)
def test_a_finished_net_is_marked_without_any_image(method, owner):
    model = build_digits_model(0).eval()
    marked, key = result = mark_model(model, method, owner, budget=ANY_BUDGET)
    evidence = verify(marked, key)
    assert evidence.found
    assert evidence.log2_p <= -128
    assert not verify(model, key).found
    assert result.fidelity.synthetic


def test_the_number_of_subkeys_follows_from_the_budget(owner):
    model = build_digits_model(0).eval()
    most = mark_model(model, "greedy_residuals", owner, budget=ANY_BUDGET)
    fewest = mark_model(model, "greedy_residuals", owner, budget=0)
    assert len(most[1].assignments[0].subkeys) == 4
    assert len(fewest[1].assignments[0].subkeys) == 2  # one is opened, one has to be left
    assert fewest.fidelity.kl < most.fidelity.kl


def test_a_mark_that_cannot_be_claimed_is_said(owner, caplog):
    model = build_digits_model(0).eval()
    mark_model(model, "greedy_residuals", owner, budget=ANY_BUDGET)
    assert "cannot be claimed" not in caplog.text
    mark_model(model, GreedyResidualsConfig(bits=16, subkeys=2), owner, budget=ANY_BUDGET)
    assert "cannot be claimed" in caplog.text


def test_a_bare_backbone_has_no_logits(owner):
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic")
    marked, key = result = mark_model(
        ResNetModel(config).eval(), CONFIGS["greedy_residuals"], owner, budget=ANY_BUDGET
    )
    assert verify(marked, key).rate == 1
    assert result.fidelity.agreement == 1
    assert 0 < result.fidelity.kl < 0.5


def test_what_cannot_be_marked_is_refused(owner):
    model = build_digits_model(0)
    with pytest.raises(InvalidInput, match="has to be trained"):
        mark_model(model, "usp", owner)
    with pytest.raises(InvalidInput, match="float32"):
        mark_model(copy.deepcopy(model).half(), "greedy_residuals", owner)
    with pytest.raises(InvalidInput, match="at least 16"):
        mark_model(model, "greedy_residuals", owner, images=torch.zeros(3, 1, 32, 32))
    with pytest.raises(InvalidInput, match="paper"):
        mark_model(model, GreedyResidualsConfig.paper(), owner, budget=ANY_BUDGET)


# Projection


def test_a_model_that_takes_more_than_images_is_refused_in_words(owner):
    config = Siglip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_patches=16, patch_size=4
    )
    with pytest.raises(InvalidInput, match="answers no images of shape .* give `images` as it takes them"):
        mark_model(Siglip2VisionModel(config), CONFIGS["watermas"], owner, None, ANY_BUDGET)


def test_projected_groups_hold_their_bit_also_after_noise():
    values = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    moved = project(values, 0.1, 0.5)
    total, _ = expected_sum(moved, 0.5)
    assert (total >= 0.1 * 64 * 0.999).all()
    held = expected_sum(values, 0.5)[0] >= 0.1 * 64
    assert held.any()
    assert torch.equal(moved[held], values[held])
    noise = 0.3 * torch.randn(moved.shape, generator=torch.Generator().manual_seed(1))
    assert (greedy_mean(moved + noise, 0.5) > 0).float().mean() > 0.97


def test_projection_is_no_farther_than_plain_shifting():
    values = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    moved = project(values, 0.1, 0.5)
    # The same shift of every weight of a group, as far as the same expectation asks for.
    shifts = torch.linspace(0, 2, 400)
    for group, found in zip(values[:40], moved[:40], strict=True):
        totals = expected_sum(group + shifts[:, None], 0.5)[0]
        enough = shifts[int((totals >= expected_sum(found[None], 0.5)[0]).nonzero()[0])]
        assert (found - group).norm() <= enough * 8 + 1e-3


def test_the_gradient_of_the_expectation():
    values = torch.randn(5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total, slope = expected_sum(values, 1.0)
    assert torch.equal(total, values.sum(dim=1))
    assert (slope == 1).all()
    total, slope = expected_sum(values, 0.5)
    place = 3  # one that does not set the border
    step = torch.zeros_like(values)
    step[:, place] = 1e-6
    ranked = values.abs().argsort(dim=1, descending=True)[:, 31:33]
    free = ~(ranked == place).any(dim=1)
    slope_found = (expected_sum(values + step, 0.5)[0] - total) / 1e-6
    assert torch.allclose(slope_found[free], slope[free, place], atol=1e-4)


# Compensation


@pytest.mark.parametrize("samples", [10, 200])
def test_compensation_is_the_constrained_minimum(samples):
    generator = torch.Generator().manual_seed(0)
    inputs = Inputs.of(torch.randn(1, samples, 20, generator=generator, dtype=torch.float64))
    change = torch.randn(6, 20, generator=generator, dtype=torch.float64)
    held = torch.rand(6, 20, generator=generator) < 0.4
    found = compensated(change, held, inputs, 0.3)
    curvature = inputs.samples[0].T @ inputs.samples[0] + 0.3 * torch.eye(20, dtype=torch.float64)
    inverse = curvature.inverse()
    for row, mask, result in zip(change, held, found, strict=True):
        exact = inverse[:, mask] @ inverse[mask][:, mask].inverse() @ row[mask]
        assert torch.allclose(result, exact, atol=1e-6)


def test_compensation_keeps_a_mean_that_nothing_else_can_take():
    generator = torch.Generator().manual_seed(0)
    inputs = Inputs.of(torch.randn(1, 100, 20, generator=generator) + 2)
    change = torch.randn(6, 20, generator=generator)
    held = torch.rand(6, 20, generator=generator) < 0.4
    free = output_shift(compensated(change, held, inputs, 0.3), inputs).abs().mean()
    kept = output_shift(compensated(change, held, inputs, 0.3, keep_mean=True), inputs).abs().mean()
    assert kept < 0.1 * free


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 8, 3, stride=2, groups=2),
        nn.Conv2d(4, 4, 3, padding="same", groups=4),
        nn.Conv2d(4, 6, 1, padding=1, padding_mode="reflect"),
        nn.Linear(4, 6),
    ],
    ids=["conv", "grouped", "depthwise", "reflected", "linear"],
)
def test_inputs_explain_the_mean_output_of_a_layer(layer):
    model = nn.Sequential(layer)
    images = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    if isinstance(layer, nn.Linear):
        images = images.movedim(1, -1)
    inputs = layer_inputs(model, ["0.weight"], images, synthetic=False)["0.weight"]
    output = functional.linear(images, layer.weight) if isinstance(layer, nn.Linear) else layer(images)
    output = output if isinstance(layer, nn.Linear) else (output - layer.bias[:, None, None]).movedim(1, -1)
    shift = output_shift(layer.weight.detach().flatten(1), inputs)
    assert torch.allclose(shift, output.detach().flatten(0, -2).mean(dim=0), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 5), "padding": (2, 1), "stride": (2, 1)},
        {"kernel_size": 3, "dilation": 2, "padding": "same"},
        {"kernel_size": 2, "stride": 3, "groups": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    ],
)
@pytest.mark.parametrize("batch", [(3,), ()])
def test_sampled_inputs_of_a_convolution_give_its_outputs(options, batch):
    layer, images = nn.Conv2d(4, 6, **options), torch.randn(*batch, 4, 11, 14)
    with torch.no_grad():
        rows = layer.weight.reshape(layer.groups, 6 // layer.groups, -1)
        answers = torch.einsum("gnc,goc->ngo", _rows_of(layer, images, 10**6), rows).flatten(1) + layer.bias
        wanted = layer(images if batch else images[None]).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(answers.sort(dim=0).values, wanted.sort(dim=0).values, atol=1e-5, rtol=1e-4)
    assert len(_rows_of(layer, images, 7)[0]) == 7


def test_pictures_are_the_same_for_the_same_seed():
    assert torch.equal(dead_leaves(2, 3, 32, 24, seed=1), dead_leaves(2, 3, 32, 24, seed=1))
    pictures = dead_leaves(8, 3, 32, 32)
    assert torch.allclose(pictures.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3)
    # Neighbours look alike, as in a photograph.
    assert torch.corrcoef(torch.stack([pictures[..., 1:].flatten(), pictures[..., :-1].flatten()]))[0, 1] > 0.5


def test_fidelity_of_an_unchanged_model_is_perfect():
    model = build_digits_model(0).eval()
    report = measure_fidelity(model, copy.deepcopy(model), torch.randn(4, 1, 32, 32))
    assert (report.kl, report.agreement, report.layers) == (0, 1, {})
    assert report.to_dict()["images"] == 4


# Over a mark that is there


def twice_marked(owner, first, second):
    """An unmarked model, and what both marks make of it."""
    images = torch.randn(32, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    model = small_model().eval()
    once, old = mark_model(model, first, owner, images, ANY_BUDGET)
    return model, once, old, lambda keep: mark_model(once, second, owner, images, ANY_BUDGET, keep=[keep])


@pytest.mark.parametrize("second", [GreedyResidualsConfig(bits=200, subkeys=2), WaterMASConfig(bits=200, subkeys=2)])
def test_a_second_mark_leaves_the_first_one(second, owner):
    _, once, old, mark_again = twice_marked(owner, GreedyResidualsConfig(bits=200, subkeys=2), second)
    twice, new = mark_again(old)
    assert verify(twice, old).found and verify(twice, old).rate > 0.95
    assert verify(twice, new).found and not verify(once, new).found
    assert new.context.start == start_digest(once.state_dict())


def test_a_first_mark_that_would_be_lost_is_named(owner):
    # Level N with not one bit to spare, and a heavy mark over it.
    heavy = GreedyResidualsConfig(bits=240, subkeys=2, margin=3.0)
    model, once, old, mark_again = twice_marked(owner, GreedyResidualsConfig(bits=130, subkeys=2), heavy)
    name = old.precommit.hex()[:16]
    with pytest.raises(
        InvalidInput, match=f"the key {name} .* would be lost under the new mark, so nothing was marked"
    ):
        mark_again(old)
    assert verify(once, old).found
    with pytest.raises(InvalidInput, match=f"the key {name} .* is not in this model"):
        mark_model(model, heavy, owner, keep=[old])
