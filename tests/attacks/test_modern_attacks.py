"""Merging, LoRA, ONNX, 4 bits, soft labels, stacks: each does to the weights what it says."""

import pytest
import torch
from torch import nn

from hf_watermark.attacks import (
    FineTune,
    Int4Quantize,
    LoraFineTune,
    Merge,
    MergeSibling,
    NotApplicableError,
    OnnxRoundTrip,
    Regularize,
    SoftLabelFineTune,
    Stack,
    UniformQuantize,
    WeightNoise,
    WeightShift,
)
from hf_watermark.attacks.adversarial import adversarial_examples, occlude
from hf_watermark.attacks.attention import attention_maps, map_distance, maps_of
from hf_watermark.attacks.base import classifier_head, weight_layers
from hf_watermark.attacks.regularization import softened


QUICK = {"batch_size": 16, "epochs": 2}


def distance(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return sum((a - b).detach().square().sum() for a, b in pairs).sqrt().item()


def answers(model, images):
    with torch.no_grad():
        return model(pixel_values=images).logits


def test_merging_halves_the_distance(resnet):
    base = WeightNoise(0.5)(resnet)
    merged = Merge(base)(resnet)
    assert distance(merged, base) == pytest.approx(distance(resnet, base) / 2, rel=1e-4)
    assert distance(merged, resnet) == pytest.approx(distance(resnet, base) / 2, rel=1e-4)
    assert distance(Merge(base, weight=1.0)(resnet), base) == pytest.approx(0, abs=1e-5)


def test_merging_with_a_sibling_goes_half_way(resnet, data):
    merged, whole = (MergeSibling(**QUICK, weight=weight)(resnet, data) for weight in (0.5, 1.0))
    assert distance(merged, resnet) == pytest.approx(distance(whole, resnet) / 2, rel=1e-3)
    assert distance(whole, resnet) > 0


def test_merging_reads_a_folder_and_keeps_a_head_of_another_shape(resnet, tmp_path):
    base = WeightNoise(0.5)(resnet)
    head = classifier_head(base)
    base.classifier[1] = nn.Linear(head.in_features, 7)
    base.config.num_labels = 7
    base.save_pretrained(tmp_path)
    merged = Merge(str(tmp_path))(resnet)
    assert torch.equal(classifier_head(merged).weight, classifier_head(resnet).weight)
    stem = [model.resnet.embedder.embedder.convolution.weight for model in (resnet, base, merged)]
    assert torch.allclose(stem[2], (stem[0] + stem[1]) / 2)


def test_merging_asks_for_a_model_that_fits(resnet, vit, tmp_path):
    with pytest.raises(ValueError, match="Merge: other=None is not usable"):
        Merge()(resnet)
    with pytest.raises(ValueError, match="Merge: other='/no/such' is not usable"):
        Merge("/no/such")(resnet)
    with pytest.raises(NotApplicableError, match="ViTForImageClassification shares 0 of"):
        Merge(vit)(resnet)


@pytest.mark.parametrize("victim", ["resnet", "timm_resnet", "vit"])
def test_lora_moves_each_weight_by_a_low_rank(victim, request, data):
    pytest.importorskip("peft")
    model = request.getfixturevalue(victim)
    attacked = LoraFineTune(rank=2, learning_rate=0.05, batch_size=16, epochs=2)(model, data)
    assert type(attacked) is type(model) and attacked.state_dict().keys() == model.state_dict().keys()
    assert not any("lora" in name for name, _ in attacked.named_modules())
    head = classifier_head(attacked)
    for before, layer in zip(weight_layers(model).values(), weight_layers(attacked).values(), strict=True):
        change = (layer.weight - before.weight).detach()
        assert change.abs().max() > 0
        if layer is not head and isinstance(layer, nn.Linear):
            spectrum = torch.linalg.svdvals(change)
            assert spectrum[2:].max() < 1e-4 * spectrum[0] + 1e-6
        if layer is not head and isinstance(layer, nn.Conv2d):
            assert torch.linalg.matrix_rank(change.flatten(1), rtol=1e-4) <= 2


def test_lora_learns(resnet, data, images, labels):
    pytest.importorskip("peft")
    attacked = LoraFineTune(learning_rate=0.05, batch_size=16, epochs=4)(resnet, data)
    before, after = ((answers(model, images).argmax(-1) == labels).float().mean() for model in (resnet, attacked))
    assert after > 0.9 > before


def test_onnx_folds_batchnorm_and_keeps_the_answers(timm_resnet, images):
    pytest.importorskip("onnxscript")
    attacked = OnnxRoundTrip()(timm_resnet)
    assert torch.allclose(answers(timm_resnet, images), answers(attacked, images), atol=1e-3)
    for layer in attacked.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all() and (layer.running_mean == 0).all()
    assert not torch.equal(attacked.timm_model.layer2[0].conv1.weight, timm_resnet.timm_model.layer2[0].conv1.weight)


def test_onnx_int8_leaves_few_levels(vit, images):
    pytest.importorskip("onnxscript")
    attacked = OnnxRoundTrip("int8")(vit)
    *body, head = zip(weight_layers(vit).values(), weight_layers(attacked).values(), strict=True)
    assert torch.equal(head[0].weight, head[1].weight)
    for before, layer in body:
        step = before.weight.abs().max() / 127
        assert 0 < (layer.weight - before.weight).abs().max() <= 1.01 * step
        assert max(len(row.unique()) for row in layer.weight.flatten(1)) <= 256
    gap = (answers(vit, images) - answers(attacked, images)).abs().max()
    assert 0 < gap < 0.2 * answers(vit, images).abs().max()


@pytest.mark.parametrize("victim", ["resnet", "vit"])
@pytest.mark.parametrize("group_size", [8, 32])
def test_int4_leaves_16_levels_per_group(victim, group_size, request):
    pytest.importorskip("torchao")
    model = request.getfixturevalue(victim)
    attacked = Int4Quantize(group_size)(model)
    head = classifier_head(attacked)
    for before, layer in zip(weight_layers(model).values(), weight_layers(attacked).values(), strict=True):
        groups = layer.weight.detach().flatten(1)[:, :group_size]
        if layer is head:
            assert torch.equal(layer.weight, before.weight)
        else:
            assert max(len(row.unique()) for row in groups) <= 16
            step = before.weight.flatten(1)[:, :group_size].abs().amax(1, keepdim=True) / 7.5
            assert ((groups - before.weight.flatten(1)[:, :group_size]).abs() <= 1.01 * step).all()


def test_int4_follows_the_weights_better_than_one_scale_per_row(resnet):
    pytest.importorskip("torchao")
    body = [name for name, _ in resnet.named_parameters() if "convolution" in name]
    errors = [
        sum((attacked.get_parameter(n) - resnet.get_parameter(n)).square().sum().item() for n in body)
        for attacked in (Int4Quantize(8)(resnet), UniformQuantize(4)(resnet))
    ]
    assert errors[0] < errors[1]


def test_weight_shift_moves_the_mean_filter(resnet):
    shifted = WeightNoise(0.1)(resnet)
    before = shifted.resnet.embedder.embedder.convolution.weight.detach().clone()
    WeightShift(shift=1.0).move(shifted)
    after = shifted.resnet.embedder.embedder.convolution.weight
    assert torch.allclose(after, before - before.mean(0, keepdim=True)) and after.mean(0).abs().max() < 1e-6


def test_strong_decay_shrinks_the_weights(resnet, data):
    calm = FineTune(**QUICK, weight_decay=0.0)(resnet, data)
    attacked = Regularize(**QUICK, decay=2.0, decay_epochs=2, weight_decay=0.0)(resnet, data)
    norms = [sum(layer.weight.square().sum() for layer in weight_layers(m).values()) for m in (calm, attacked)]
    assert norms[1] < 0.8 * norms[0]


def test_soft_labels_by_hand():
    probabilities = torch.tensor([[0.5, 0.3, 0.2]])
    assert torch.allclose(softened(probabilities, 1, 0.3), torch.tensor([[0.8, 0.1, 0.1]]))
    assert torch.allclose(softened(probabilities, 2, 0.0), torch.tensor([[0.625, 0.375, 0.0]]))
    shuffled = softened(probabilities.repeat(200, 1), 1, 0.4, torch.Generator().manual_seed(0))
    assert torch.allclose(shuffled.sum(1), torch.ones(200)) and (shuffled[:, 0] >= 0.6 - 1e-6).all()
    assert 0.2 < (shuffled[:, 1] > 0.3).float().mean() < 0.45  # a third of the permutations


def test_soft_label_attack_flattens_answers_and_keeps_the_labels(rule):
    unlabelled = [{**example, "labels": 0} for example in rule.data]
    attack = SoftLabelFineTune(learning_rate=0.02, epochs=8, batch_size=16, smoothing=0.5)
    attacked = attack(rule.model, unlabelled)
    images = torch.stack([example["pixel_values"] for example in rule.data])
    top = [answers(model, images).softmax(1).amax(1).mean() for model in (rule.model, attacked)]
    assert top[0] > 0.9 and top[1] < 0.75  # the target: 1 - 0.5 + 0.5 / 4 = 0.625
    assert rule.accuracy(attacked) > 0.9


def test_adversarial_examples_stay_in_the_ball_and_raise_the_loss(resnet, images, labels):
    low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    radius = 0.05 * (high - low)
    start = 2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 1
    found = adversarial_examples(resnet, images, labels, radius, 5, start, low, high)
    assert (
        ((found - images).abs() <= radius + 1e-5).all()
        and (found >= low - 1e-5).all()
        and (found <= high + 1e-5).all()
    )
    near = (images + radius * start).clamp(low, high)
    losses = [resnet(pixel_values=some, labels=labels).loss.item() for some in (images, near, found)]
    assert losses[2] > 1.1 * max(losses[:2])


def test_occlusion_covers_one_rectangle_of_the_stated_area(images):
    covered = (occlude(images, 0.25, torch.Generator().manual_seed(0)) != images).any(dim=1).float()
    assert covered.mean((1, 2)).sub(0.25).abs().max() < 0.06
    for mask in covered:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert mask.sum() == box


@pytest.mark.parametrize("victim", ["resnet", "timm_resnet", "vit"])
def test_attention_maps_have_length_one(victim, request, images):
    maps = attention_maps(request.getfixturevalue(victim), images)
    assert len(maps) >= 2 and all(torch.allclose(item.norm(dim=1), torch.ones(64), atol=1e-4) for item in maps)
    assert map_distance(maps, maps) == 0
    (by_hand,) = maps_of([torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]])])  # (1, 2 channels, 1, 2)
    assert torch.allclose(by_hand, torch.tensor([[9.0, 4.0]]) / 97**0.5)


def test_a_stack_is_its_parts_in_order(resnet, data):
    one, two = FineTune(**QUICK), UniformQuantize(4)
    stacked, by_hand = Stack([one, two])(resnet, data), two(one(resnet, data))
    assert distance(stacked, by_hand) == 0
    assert Stack([one, two]).needs_data and not Stack([two]).needs_data
    assert Stack([one, one]).budget(data)["steps"] == 2 * one.budget(data)["steps"]
    with pytest.raises(ValueError, match="attacks=\\(\\) is not usable"):
        Stack(())
    with pytest.raises(ValueError, match="needs data"):
        Stack([one])(resnet)
