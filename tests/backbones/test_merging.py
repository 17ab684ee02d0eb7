"""Copies for inference: branches summed into one convolution, normalisations folded into the layers before them."""

import copy

import pytest
import timm
import torch
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.levit import Levit
from timm.models.repvit import RepVit
from timm.utils.model import reparameterize_model
from torch import nn
from zoo import lively

from hf_watermark import GreedyResidualsConfig, Owner, mark_model, verify
from hf_watermark.backbones import find_places, layout_of
from hf_watermark.backbones.merging import merged_copy
from hf_watermark.backbones.symmetry import Change, Moved, fold, symmetry_of, unfold
from hf_watermark.evidence import Verdict
from hf_watermark.verification.alignment import Aligner


CONFIG = GreedyResidualsConfig(bits=256, group_size=16, subkeys=2)
IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def blocks(kind: str, width: int = 48) -> nn.Module:
    stages = tuple(ByoBlockCfg(type=kind, d=2, c=width * 2**stage, s=2, gs=0, br=1.0) for stage in range(2))
    return ByobNet(ByoModelCfg(blocks=stages, stem_type=kind, stem_chs=32), num_classes=10)


KINDS = {
    "repvgg": lambda: blocks("rep"),
    "mobileone": lambda: ByobNet(
        ByoModelCfg(
            blocks=tuple(ByoBlockCfg(type="one", d=2, c=c, s=2, gs=0, br=1.0, block_kwargs={"num_conv_branches": 2}) for c in (48, 96)),
            stem_type="one", stem_chs=48,
        ),
        num_classes=10,
    ),
    "repvit": lambda: RepVit(embed_dim=(32, 48, 64), depth=(1, 1, 1), mlp_ratio=2, num_classes=10),
    "levit": lambda: Levit(
        img_size=32, embed_dim=(32, 48, 64), key_dim=8, depth=(1, 1, 1), num_heads=(2, 2, 2), stem_type="s8", num_classes=10
    ),
}  # fmt: skip


@pytest.fixture(params=list(KINDS), scope="module")
def case(request):
    torch.manual_seed(0)
    model = lively(KINDS[request.param]())
    marked, key = mark_model(model, CONFIG, Owner.create(), IMAGES, 1e9)
    return model, marked, key


def test_our_copy_for_inference_is_that_of_timm(case):
    _, marked, _ = case
    ours, theirs = merged_copy(marked).state_dict(), reparameterize_model(copy.deepcopy(marked)).state_dict()
    assert list(ours) == list(theirs) != list(marked.state_dict())
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_answers_as_the_original(case):
    _, marked, _ = case
    with torch.no_grad():
        torch.testing.assert_close(merged_copy(marked)(IMAGES), marked(IMAGES), rtol=1e-3, atol=1e-3)


def test_the_mark_is_read_from_it_without_a_reference(case, request):
    _, marked, key = case
    evidence = verify(merged_copy(marked), key)
    if "mobileone" in request.node.name:  # sums of equal branches keep two bits in three, too few for these 256
        assert evidence.verdict is Verdict.INCONCLUSIVE
        assert evidence.log2_p <= -20 or "reparameterised" in f"{evidence.warnings}{evidence.unread}"
    else:
        assert evidence.found and evidence.log2_p <= -64 and evidence.rate > 0.85


def test_the_unmarked_one_does_not_show_it(case):
    model, _, key = case
    evidence = verify(merged_copy(model), key)
    assert not evidence.found and evidence.log2_p > -20


def test_where_branches_were_summed_not_seeing_the_mark_means_nothing():
    torch.manual_seed(0)
    model = lively(blocks("rep"))
    _, key = mark_model(model, CONFIG, Owner.create(), IMAGES, 1e9)
    evidence = verify(merged_copy(model), key)
    assert evidence.verdict is Verdict.INCONCLUSIVE and "reparameterised: branches were merged" in evidence.unread


def test_a_branch_of_one_by_one_lies_in_the_middle_of_the_sum():
    carriers = layout_of(blocks("rep"))
    shapes = {name: tuple(tensor.shape) for name, tensor in merged_copy(blocks("rep").eval()).state_dict().items()}
    [place] = find_places(carriers, {f"module.{name}": shape for name, shape in shapes.items()})
    assert place.merged and all(item.scale is None for item in place.found)
    assert {item.middle for item in place.found} == {True, False}


def permuted(model: nn.Module) -> nn.Module:
    symmetry = symmetry_of(model)
    torch.manual_seed(1)
    moved = {
        number: Moved.permutation(torch.randperm(space.size))
        for number, space in enumerate(symmetry.spaces)
        if space.kind == "permutation"
    }
    state = unfold(symmetry, Change(moved).apply(symmetry, fold(symmetry, model.state_dict())), model.state_dict())
    model.load_state_dict(state)
    return model


def test_reordered_channels_of_a_copy_for_inference_are_put_back_by_the_original():
    torch.manual_seed(0)
    model = lively(KINDS["repvit"]())
    marked, key = mark_model(model, CONFIG, Owner.create(), IMAGES, 1e9)
    suspect = permuted(merged_copy(marked))
    assert not verify(suspect, key).found
    evidence = verify(suspect, key, reference=model)
    assert evidence.found and evidence.details["alignment"]["committed_reference"]


def test_of_added_branches_every_third_input_carries_so_that_a_reordered_copy_is_put_back():
    torch.manual_seed(0)
    model = lively(blocks("rep"))
    assert all(carrier.every_third_input for carrier in layout_of(model))
    marked, key = mark_model(model, CONFIG, Owner.create(), IMAGES, 1e9)
    suspect = permuted(merged_copy(marked))
    assert not verify(suspect, key).found
    evidence = verify(suspect, key, reference=model)
    assert evidence.details["alignment"]["committed_reference"] and evidence.rate > 0.85 and evidence.log2_p <= -64
    assert verify(permuted(merged_copy(model)), key, reference=model).log2_p > -20


def test_a_reordered_sum_of_equal_branches_is_put_back_and_holds_too_little_of_each():
    torch.manual_seed(0)
    model = lively(KINDS["mobileone"]())
    marked, key = mark_model(model, CONFIG, Owner.create(), IMAGES, 1e9)
    evidence = verify(permuted(merged_copy(marked)), key, reference=model)
    assert evidence.verdict is Verdict.INCONCLUSIVE and "reparameterised" in f"{evidence.warnings}{evidence.unread}"
    assert evidence.details["alignment"]["carriers_readable"] > 0.9


def test_what_the_fit_may_see_of_a_sum_holds_no_carrier():
    torch.manual_seed(0)
    model = lively(blocks("rep"))
    carriers = layout_of(model)
    anchors = Aligner(merged_copy(model), carriers).anchors
    for carrier in carriers:  # any change of a carrier leaves them as they are
        with torch.no_grad():
            weight = model.get_parameter(carrier.name)
            weight[:, 2::3] = 0 if carrier.every_third_input else 1
    after = Aligner(merged_copy(model), carriers).anchors
    weights = [name for name in anchors if name.endswith("weight")]
    assert set(anchors) == set(after) and all(
        torch.allclose(anchors[name], after[name], atol=1e-5) for name in weights
    )


def test_folded_normalisations_of_a_derived_layout_change_nothing():
    torch.manual_seed(0)
    model = lively(timm.create_model("regnetx_002", num_classes=10))
    marked, key = mark_model(model, CONFIG, Owner.create(), IMAGES, 1e9)
    for folded, found in ((fold_all(marked), True), (fold_all(model), False)):
        evidence = verify(folded, key)
        assert evidence.found is found
        assert not found or evidence.log2_p <= -128


def fold_all(model: nn.Module) -> nn.Module:
    """As deployment tools do it: every BatchNorm goes into the convolution of its module."""
    folded = copy.deepcopy(model)
    for module in folded.modules():
        conv, norm = getattr(module, "conv", None), getattr(module, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.conv = nn.utils.fuse_conv_bn_eval(conv, norm)
            module.bn = nn.Identity()
    assert "stem.conv.bias" in folded.state_dict() and "stem.bn.weight" not in folded.state_dict()
    return folded
