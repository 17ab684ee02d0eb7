"""Carriers are found by role in every family, never start a stream, and read the same from every copy of a model."""

from collections.abc import Mapping

import pytest
import timm
import torch

from hf_watermark import GreedyResidualsVerifier, Suspect, WatermarkKey, plan_key
from hf_watermark.backbones import (
    STEM,
    LayoutMismatch,
    canonical_rows,
    describe,
    find_carriers,
    find_places,
    find_stem,
    locate,
    own_rows,
    slot_rows,
)
from hf_watermark.methods.greedy_residuals import GreedyResidualsConfig, GreedyResidualsEmbedding
from hf_watermark.methods.greedy_residuals.residuals import groups_per_slot
from hf_watermark.serialization import SafetensorsFolder


def shapes_of(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def read(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Canonical rows by role."""
    shapes = shapes_of(weights)
    return {carrier.role: canonical_rows(carrier, weights, shapes) for carrier in describe(shapes)}


def residuals(owner, layout_of: Mapping[str, torch.Tensor], suspect) -> torch.Tensor:
    """Residuals of `suspect` under a fixed key made for the layout of another copy."""
    carriers = describe(shapes_of(layout_of))
    config = GreedyResidualsConfig(bits=min(groups_per_slot(carriers, 8, 1), 512), subkeys=1, group_size=8)
    plan = ("greedy_residuals", "1", config.to_dict(), {"carriers": [carrier.to_dict() for carrier in carriers]}, 1)
    [claim] = WatermarkKey.create(owner, [plan], seed=bytes(32)).claims()
    verifier, [subkey] = GreedyResidualsVerifier(claim), claim.subkeys
    return verifier.extract(verifier.observe(Suspect.open(suspect), subkey), subkey)


def assert_equal_rows(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert list(left) == list(right)
    for role in left:
        torch.testing.assert_close(left[role], right[role], rtol=0, atol=0)


# --- What a carrier is ------------------------------------------------------------------------------------------------


def test_no_carrier_starts_a_stream(any_backbone, ask):
    # With every carrier weight at zero the model still sees its input: all streams have another writer, which can align a suspect.
    model, images = any_backbone
    before = ask(model, images)
    state = model.state_dict()
    shapes = shapes_of(state)
    for carrier in describe(shapes):
        weight = state[locate(carrier.role, shapes).weight]
        eligible = carrier.select(torch.arange(carrier.columns).repeat(carrier.rows, 1))
        weight.view(carrier.rows, -1).scatter_(1, eligible, 0.0)
    after = ask(model, images)
    assert not torch.equal(before, after)
    assert (after[0] - after[1]).norm() > 1e-3 * (before[0] - before[1]).norm() > 0


def test_stem_and_carriers_are_different_tensors(any_backbone):
    model, _ = any_backbone
    shapes = shapes_of(model.state_dict())
    _, found = find_carriers(shapes)
    names = [item.weight for item in found.values()]
    assert len(set(names)) == len(names) >= 2
    assert list(found) == [f"{list(found)[0].split('.')[0]}.{number}" for number in range(len(found))]
    if "conv1.0.weight" not in shapes:  # the deep stem of resnet10t is no single convolution
        assert find_stem(shapes) not in names


def test_vgg_carries_in_every_third_input_channel(build_backbone):
    model = build_backbone("plain timm vgg_bn")
    shapes = shapes_of(model.state_dict())
    carriers = describe(shapes)
    assert (
        locate("vgg.0", shapes).weight == "features.4.weight" and locate("vgg.0", shapes).scale == "features.5.weight"
    )
    channels = torch.arange(8).repeat_interleave(9).repeat(16, 1)
    assert sorted(set(carriers[0].select(channels).flatten().tolist())) == [2, 5]
    assert carriers[0].eligible == 18 and carriers[1].eligible == 5 * 9


@pytest.mark.parametrize(
    ("architecture", "family", "count", "stem"),
    [
        ("resnet18", "resnet", 8, "conv1.weight"),
        ("resnet50", "resnet", 16, "conv1.weight"),
        ("vgg11", "vgg", 7, "features.0.weight"),
        ("vgg11_bn", "vgg", 7, "features.0.weight"),
        ("mobilenetv3_small_100", "inverted_residual", 6, "conv_stem.weight"),
        ("mobilenetv2_100", "inverted_residual", 10, "conv_stem.weight"),
        ("efficientnet_b0", "inverted_residual", 9, "conv_stem.weight"),
        ("swin_tiny_patch4_window7_224", "swin", 12, "patch_embed.proj.weight"),
        ("convnext_tiny", "convnext", 18, "stem.0.weight"),
        ("mobilevit_xxs", "mobilevit", 9, "stem.conv.weight"),
        ("vit_small_patch16_224", "vit", 12, "patch_embed.proj.weight"),
    ],
)
def test_full_size_timm_models(architecture, family, count, stem):
    with torch.device("meta"):  # shapes only
        shapes = shapes_of(timm.create_model(architecture).state_dict())
    found_family, found = find_carriers(shapes)
    assert (found_family.name, len(found), find_stem(shapes)) == (family, count, stem)


def test_equal_widths_do_not_make_a_stride_two_block_a_carrier(build_backbone):
    # In a narrow MobileNetV2 the first two stages are 8 wide, so the first block of stage two has equal widths and no shortcut.
    shapes = shapes_of(build_backbone("transformers mobilenet_v2").state_dict())
    assert shapes["mobilenet_v2.layer.0.reduce_1x1.convolution.weight"][0] == 8
    assert "mobilenet_v2.layer.0." not in locate("inverted_residual.0", shapes).weight


# --- Copies of one model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "timm_model.", "_orig_mod.", "module._orig_mod.", "model.backbone."])
def test_prefixes_change_nothing(any_backbone, prefix):
    model, _ = any_backbone
    state = model.state_dict()
    assert_equal_rows(read({prefix + name: tensor for name, tensor in state.items()}), read(state))


def test_files_read_like_the_live_model(saveable_backbone, tmp_path):
    model, _ = saveable_backbone
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    live = read(model.state_dict())
    for folder in ("one", "many"):
        assert_equal_rows(read(SafetensorsFolder(tmp_path / folder)), live)


def test_bf16_copies_keep_the_bits(saveable_backbone, owner, tmp_path):
    model, _ = saveable_backbone
    live = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = residuals(owner, live, model)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert set(SafetensorsFolder(tmp_path).dtypes.values()) <= {"BF16", "I64"}
    stored = residuals(owner, live, tmp_path)
    assert len(stored) >= 64 and ((stored > 0) == (expected > 0)).float().mean() >= 0.99


def test_names_in_files_are_not_live_names(build_backbone, tmp_path):
    model = build_backbone("transformers vit")
    model.save_pretrained(tmp_path)
    in_file = locate("vit.1", SafetensorsFolder(tmp_path).shapes).weight
    in_memory = locate("vit.1", shapes_of(model.state_dict())).weight
    assert in_file == "vit.encoder.layer.1.output.dense.weight" and in_memory == "vit.layers.1.mlp.fc2.weight"


def resnet_port(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm names -> transformers names."""
    parts = {"conv1": "layer.0.convolution", "conv2": "layer.1.convolution", "bn1": "layer.0.normalization"}
    parts |= {"bn2": "layer.1.normalization", "downsample.0": "shortcut.convolution"}
    parts |= {"downsample.1": "shortcut.normalization"}
    ported = {}
    for name, tensor in state.items():
        module, kind = name.rsplit(".", 1)
        if module.startswith("layer"):
            stage, block, rest = module.removeprefix("layer").split(".", 2)
            target = f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.{parts[rest]}"
        else:
            embedder = "resnet.embedder.embedder"
            target = {"conv1": f"{embedder}.convolution", "bn1": f"{embedder}.normalization", "fc": "classifier.1"}[
                module
            ]
        ported[f"{target}.{kind}"] = tensor
    return ported


def vit_port(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm names -> transformers names of the live model."""
    parts = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    parts |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    outer = {"cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings"}
    for kind in ("weight", "bias"):
        outer[f"patch_embed.proj.{kind}"] = f"vit.embeddings.patch_embeddings.projection.{kind}"
        outer[f"norm.{kind}"], outer[f"head.{kind}"] = f"vit.layernorm.{kind}", f"classifier.{kind}"
    ported = {}
    for name, tensor in state.items():
        if name in outer:
            ported[outer[name]] = tensor
            continue
        _, block, rest = name.split(".", 2)
        module, kind = rest.rsplit(".", 1)
        if module == "attn.qkv":
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                ported[f"vit.layers.{block}.attention.{letter}_proj.{kind}"] = part
        else:
            ported[f"vit.layers.{block}.{parts[module]}.{kind}"] = tensor
    return ported


@pytest.mark.parametrize(
    ("here", "there", "port"),
    [("timm resnet18", "transformers resnet", resnet_port), ("timm vit", "transformers vit", vit_port)],
    ids=["resnet", "vit"],
)
def test_a_port_to_another_library_carries_the_same_mark(build_backbone, ask, sample_images, owner, here, there, port):
    model, ported = build_backbone(here), build_backbone(there)
    state = {name.removeprefix("timm_model."): tensor for name, tensor in model.state_dict().items()}
    ported.load_state_dict(port(state))
    images = sample_images(here)
    torch.testing.assert_close(ask(ported, images), ask(model, images), rtol=1e-4, atol=1e-4)
    assert_equal_rows(read(ported.state_dict()), read(state))
    assert torch.equal(residuals(owner, state, ported), residuals(owner, state, model))


# --- Transformations that cost a thief nothing ------------------------------------------------------------------------


def test_row_scales_and_sign_flips_change_nothing(any_backbone):
    model, _ = any_backbone
    state = model.state_dict()
    shapes = shapes_of(state)
    before = read(state)
    generator = torch.Generator().manual_seed(2)
    for carrier in describe(shapes):
        found = locate(carrier.role, shapes)
        factor = torch.empty(carrier.rows).uniform_(0.1, 10, generator=generator)
        if found.scale is not None:
            factor *= torch.randint(2, (carrier.rows,), generator=generator) * 2 - 1
            state[found.scale].mul_(factor.sign())
        state[found.weight].view(carrier.rows, -1).mul_(factor[:, None])
    after = read(state)
    for role in before:
        torch.testing.assert_close(after[role], before[role], rtol=1e-5, atol=1e-6)


def test_dead_rows_are_zero_and_say_nothing(build_backbone):
    state = build_backbone("timm resnet18").state_dict()
    shapes = shapes_of(state)
    found = locate("resnet.0", shapes)
    state[found.weight][0] = 0
    state[found.scale][1] = 0
    rows = read(state)["resnet.0"]
    assert not rows[:2].any() and rows[2:].square().mean(dim=1).sub(1).abs().max() < 1e-5


# --- The trainer and the verifier read one thing ----------------------------------------------------------------------


@pytest.mark.parametrize("layers", [None, [STEM]], ids=["carriers", "stem"])
def test_embedding_and_verifier_agree(any_backbone, owner, layers):
    model, _ = any_backbone
    shapes = shapes_of(model.state_dict())
    if layers and "conv1.0.weight" in shapes:
        pytest.skip("resnet10t has no single stem convolution")
    capacity = groups_per_slot(describe(shapes, layers), 8, 1)
    config = GreedyResidualsConfig(bits=min(capacity, 64), subkeys=1, group_size=8, layers=layers)
    [claim] = plan_key(model, None, config, owner).claims()
    verifier, [subkey] = GreedyResidualsVerifier(claim), claim.subkeys
    phi = verifier.extract(verifier.observe(Suspect.open(model), subkey), subkey)
    torch.testing.assert_close(GreedyResidualsEmbedding(model, claim).residuals(), phi, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["timm convnext", "transformers vit", "plain timm vgg_bn"])
def test_the_paper_preset_marks_a_weight_of_any_backbone(build_backbone, owner, name):
    model = build_backbone(name)
    [claim] = plan_key(model, None, GreedyResidualsConfig(preset="paper", bits=256), owner).claims()
    verifier, [subkey] = GreedyResidualsVerifier(claim), claim.subkeys
    phi = verifier.extract(verifier.observe(Suspect.open(model), subkey), subkey)
    torch.testing.assert_close(GreedyResidualsEmbedding(model, claim).residuals(), phi, rtol=1e-5, atol=1e-6)


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_two_models_in_one_state_dict_are_refused(build_backbone):
    state = build_backbone("timm resnet18").state_dict()
    doubled = {f"{side}.{name}": tensor for side in ("student", "teacher") for name, tensor in state.items()}
    with pytest.raises(ValueError, match=r"several copies of a resnet .*student.*keep only one"):
        describe(shapes_of(doubled))


def test_unknown_layers_name_the_ones_that_exist(build_backbone):
    shapes = shapes_of(build_backbone("transformers vit").state_dict())
    with pytest.raises(LayoutMismatch, match=r"layer 'vit.7' does not exist .*: vit\.0, vit\.1, stem"):
        describe(shapes, ["vit.7"])
    with pytest.raises(LayoutMismatch, match="no layers that are known"):
        describe({"weight": (4, 4)}, ["resnet.0"])


def test_unknown_families_say_what_to_do():
    with pytest.raises(ValueError, match=r"no known backbone family among 1 tensors .*name the tensors yourself"):
        describe({"lstm.weight": (4, 4)})
    [carrier] = describe({"lstm.weight": (4, 6)}, ["lstm.weight"])
    assert (carrier.role, carrier.rows, carrier.columns) == ("lstm.weight", 4, 6)


def test_a_layer_named_by_its_tensor_gets_its_role(build_backbone):
    shapes = shapes_of(build_backbone("timm resnet18").state_dict())
    name = locate("resnet.3", shapes).weight
    assert describe(shapes, [name]) == describe(shapes, ["resnet.3"])


def test_another_architecture_is_a_layout_mismatch(build_backbone):
    weights = build_backbone("transformers resnet bottleneck").state_dict()
    carriers = describe(shapes_of(build_backbone("timm resnet18").state_dict()))
    with pytest.raises(LayoutMismatch, match=r"layer 'resnet.0' .* has .* weights, the key was made for \(8, 72\)"):
        find_places(carriers, shapes_of(weights))


# --- Slots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 8, 64, 100])
@pytest.mark.parametrize("subkeys", [1, 3, 8])
def test_slots_own_every_row_once_and_turn_from_carrier_to_carrier(rows, subkeys):
    for number in range(3):
        owned = [slot_rows(number, rows, slot, subkeys) for slot in range(subkeys)]
        assert sorted(row for own in owned for row in own) == list(range(rows))
        assert max(map(len, owned)) - min(map(len, owned)) <= 1
    last = {
        slot
        for number in range(subkeys)
        for slot in range(subkeys)
        if rows - 1 in slot_rows(number, rows, slot, subkeys)
    }
    assert last == set(range(subkeys))  # the ends of the carriers hold bits of all of them


def test_own_rows_are_those_of_the_slot_laid_end_to_end():
    rows = {"a": torch.arange(12.0).reshape(6, 2), "b": torch.arange(100.0, 104).reshape(4, 1)}
    assert own_rows(rows, 0, 2).tolist() == [*range(6), 102, 103]
    assert own_rows(rows, 1, 2).tolist() == [*range(6, 12), 100, 101]
