"""Blocks that were added, left out, or numbered otherwise are matched by what their anchors say."""

import copy

import pytest
import timm
import torch
from structures import renumbered, with_block, without_block
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.mlp_mixer import MlpMixer
from zoo import lively

from hf_watermark import Owner, mark_model, verify
from hf_watermark.backbones import read_carriers
from hf_watermark.evidence import Verdict
from hf_watermark.suspects import Suspect
from hf_watermark.verification.alignment import Aligner
from hf_watermark.verification.alignment.blocks import assigned, spelled_with_surplus, stacks_of


ANY_BUDGET = 1e9
SIZES = {"num_classes": 10, "in_chans": 3}
# Architecture, its stack of blocks, and what is zero in a block that adds nothing.
NETS = {
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=4, **SIZES),
        "blocks.",
        ("proj.weight", "proj.bias", "fc2.weight", "fc2.bias"),
    ),
    "resnet": (
        lambda: timm.create_model("resnet10t", layers=(4, 1, 1, 1), channels=(64, 16, 16, 16), **SIZES),
        "layer1.",
        ("bn2.weight", "bn2.bias"),
    ),
    "convnext": (
        lambda: timm.create_model("convnext_atto", depths=(4, 1, 1, 1), dims=(48, 16, 16, 16), **SIZES),
        "stages.0.blocks.",
        ("gamma",),
    ),
    "mlp-mixer": (
        lambda: MlpMixer(img_size=32, patch_size=8, embed_dim=32, num_blocks=4, **SIZES),
        "blocks.",
        ("fc2.weight", "fc2.bias"),
    ),
}  # fmt: skip


def suspect_of(state):
    return Suspect("tensors", state, {name: tuple(tensor.shape) for name, tensor in state.items()})


@pytest.fixture(scope="module", params=NETS)
def net(request):
    build, prefix, silent = NETS[request.param]
    torch.manual_seed(0)
    start = lively(build())
    images = torch.randn(16, 3, 32, 32)
    config = {"method": "greedy_residuals", "bits": 160, "group_size": 8, "subkeys": 2}
    marked, key = mark_model(start, config, Owner.create(), images, ANY_BUDGET)
    assert verify(marked, key).found
    return start, marked.state_dict(), key, prefix, silent


def found_in(net, state):
    start, _, key, _, _ = net
    return verify(suspect_of(state), key, reference=start)


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_block_that_does_nothing_hides_no_mark(net, at):
    _, state, _, prefix, silent = net
    evidence = found_in(net, with_block(state, prefix, at, 1, silent))
    assert evidence.found, evidence.reason


def test_two_blocks_in_a_row(net):
    _, state, _, prefix, silent = net
    state = with_block(with_block(state, prefix, 1, 2, silent), prefix, 1, 4, silent)
    assert found_in(net, state).found


def test_the_copy_of_a_block_that_does_nothing_is_not_taken_for_it(net):
    _, state, _, prefix, silent = net
    evidence = found_in(net, with_block(state, prefix, 1, 2, silent, copied=True))
    assert evidence.found, evidence.reason


def test_of_a_model_without_a_block_the_rest_is_read(net):
    _, state, _, prefix, _ = net
    evidence = found_in(net, without_block(state, prefix, 2))
    assert evidence.rate > 0.95 and evidence.verdict is not Verdict.NOT_FOUND, evidence.reason
    assert evidence.details["alignment"]["blocks"] == {prefix: "1 blocks missing"}


def test_blocks_under_each_others_numbers(net):
    _, state, _, prefix, _ = net
    moved = renumbered(state, prefix, {0: 0, 1: 3, 2: 1, 3: 2}.__getitem__)
    evidence = found_in(net, moved)
    assert evidence.found, evidence.reason
    # By the rows of the carriers no reference was needed; with one, and without these, it is the same.
    start, _, key, _, _ = net
    aligned = Aligner(start, read_carriers(key.claims()[0].assignment.layout)).align(moved)
    assert aligned.report.blocks == {prefix: "blocks renumbered"} and aligned.report.readable == 1.0


def test_an_unrelated_model_of_other_depth_shows_nothing(net):
    start, _, _, prefix, silent = net
    other, generator = copy.deepcopy(start), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.std())
    for state in (other.state_dict(), with_block(other.state_dict(), prefix, 1, 2, silent)):
        evidence = found_in(net, state)
        assert evidence.log2_p > -20 and not evidence.found


def test_lists_of_modules_are_told_by_numbers_alone():
    names = ["a.blocks.0.mlp.0.weight", "a.blocks.0.mlp.2.weight", "a.blocks.1.mlp.0.weight", "layer1.0.w", "x.01.w"]
    assert [stack.prefix for stack in stacks_of(names)] == [
        "layer1.",
        "a.blocks.",
        "a.blocks.0.mlp.",
        "a.blocks.1.mlp.",
    ]


def test_surplus_blocks_get_the_next_numbers():
    names = [f"net.blocks.{n}.w" for n in range(3)]
    found = spelled_with_surplus(names, ["blocks.0.w", "blocks.1.w"])
    assert {name: source.names for name, source in found.items()} == {
        f"blocks.{n}.w": (f"net.blocks.{n}.w",) for n in range(3)
    }


def test_blocks_are_assigned_only_where_they_stand_out():
    scores = torch.full((3, 4), 0.2)
    assert assigned(scores, torch.ones(3, 4)) == ({}, [])
    scores[0, 1] = scores[1, 3] = scores[2, 0] = 0.9
    assert assigned(scores, torch.ones(3, 4)) == ({0: 1, 1: 3, 2: 0}, [])
    scores[0, 2] = 0.88  # a second one like it, and as loud
    assert assigned(scores, torch.ones(3, 4))[1] == [0]


def test_a_normalisation_of_its_own_that_is_not_there():
    """RepVGG's identity is a BatchNorm behind no layer; where the suspect has none, nothing is known of it and nothing fails."""
    torch.manual_seed(0)
    blocks = (ByoBlockCfg("rep", d=2, c=32, s=2), ByoBlockCfg("rep", d=2, c=32, s=2))
    model = lively(ByobNet(ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=16), num_classes=10))
    state = {name: tensor for name, tensor in model.state_dict().items() if ".identity." not in name}
    aligned = Aligner(model).align(state)
    assert aligned.report.recognised > 0.9


def test_variances_below_zero_are_no_obstacle():
    """Their roots do not exist, so a suspect that has them says nothing there."""
    torch.manual_seed(0)
    build, prefix, silent = NETS["resnet"]
    model = lively(build())
    state = {name: -tensor if "running_var" in name else tensor for name, tensor in model.state_dict().items()}
    for suspect in (state, with_block(state, prefix, 1, 2, silent)):
        assert Aligner(model).align(suspect).report.readable == 0.0


def test_numbers_that_are_too_large_to_be_multiplied(net):
    start, state, key, prefix, silent = net
    longer = with_block(state, prefix, 1, 2, silent)
    huge = {
        name: tensor * 1e38 if name.startswith(f"{prefix}1.") and tensor.is_floating_point() else tensor
        for name, tensor in longer.items()
    }
    evidence = found_in(net, huge)
    assert evidence.verdict is not Verdict.NOT_FOUND, evidence.reason


def test_what_is_recognised_and_cannot_be_read_is_no_verdict(net):
    """Anchors that are all the reference's, and carriers that are gone: the suspect stems from it, and no mark could have been seen."""
    start, state, key, _, _ = net
    layout = read_carriers(key.claims()[0].assignment.layout)
    if any(carrier.every_third_input for carrier in layout):
        pytest.skip("its carriers are most of what it has")
    gone = {carrier.name for carrier in layout}
    whole = Aligner(start, layout).align({name: tensor for name, tensor in state.items() if name not in gone})
    assert whole.report.readable == 0.0
    assert any("of its channels are the reference's" in doubt for doubt in whole.report.doubts)
    assert not Aligner(start, layout).align(state).report.doubts


@pytest.mark.parametrize("error", [KeyError("submod_9"), AssertionError(), RuntimeError("no rule")])
def test_a_reference_whose_graph_cannot_be_followed_makes_no_verdict(error, net, monkeypatch):
    start, _, key, _, _ = net

    def fail(*_):
        raise error

    monkeypatch.setattr("hf_watermark.verification.alignment.align.symmetry_of", fail)
    evidence = found_in(net, start.state_dict())
    assert evidence.verdict is Verdict.INCONCLUSIVE and "cannot be aligned to" in evidence.reason
