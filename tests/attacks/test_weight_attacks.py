"""Noise, pruning, quantisation and casts do to the weights what they say."""

import pytest
import torch

from hf_watermark.attacks import CastDtype, Int8Quantize, MagnitudePrune, UniformQuantize, WeightNoise
from hf_watermark.attacks.base import classifier_head, weight_layers
from hf_watermark.attacks.pruning import magnitude_masks
from hf_watermark.attacks.quantization import quantize_rows


def weights(model):
    return [layer.weight.detach() for layer in weight_layers(model).values()]


def body_weights(model):
    head = classifier_head(model)
    return [layer.weight.detach() for layer in weight_layers(model).values() if layer is not head]


def sign_agreement(one, other):
    pairs = [(a > 0) == (b > 0) for a, b in zip(weights(one), weights(other), strict=True)]
    return torch.cat([pair.flatten() for pair in pairs]).float().mean().item()


# Gaussian weights and Gaussian noise of s standard deviations agree in sign with probability 1 - arctan(s) / pi.
@pytest.mark.parametrize(("relative_std", "agreement"), [(0.01, 0.997), (1.0, 0.75), (20.0, 0.516)])
def test_noise_destroys_signs_as_theory_says(relative_std, agreement, resnet):
    attacked = WeightNoise(relative_std)(resnet)
    assert sign_agreement(resnet, attacked) == pytest.approx(agreement, abs=0.03)


def test_noise_does_not_follow_the_weights_of_a_model_made_with_the_same_seed(resnet):
    weight = resnet.resnet.embedder.embedder.convolution.weight
    weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    attacked = WeightNoise(1.0, seed=5)(resnet).resnet.embedder.embedder.convolution.weight
    assert torch.cosine_similarity((attacked - weight).flatten(), weight.flatten(), dim=0).abs() < 0.1


def test_noise_leaves_buffers_alone_and_scales_with_each_tensor(resnet):
    classifier_head(resnet).weight.data *= 100
    attacked = WeightNoise(0.5)(resnet)
    for name, buffer in resnet.named_buffers():
        assert torch.equal(buffer, attacked.get_buffer(name))
    for before, after in zip(weights(resnet), weights(attacked), strict=True):
        assert ((after - before).std() / before.std()).item() == pytest.approx(0.5, rel=0.25)


@pytest.mark.parametrize("victim", ["resnet", "timm_resnet", "vit"])
def test_global_pruning_has_the_stated_sparsity(victim, request):
    model = request.getfixturevalue(victim)
    attacked = MagnitudePrune(0.7)(model)
    flat = torch.cat([weight.flatten() for weight in body_weights(attacked)])
    assert (flat == 0).sum() == round(0.7 * len(flat))
    original = torch.cat([weight.flatten() for weight in body_weights(model)])
    assert original[flat == 0].abs().max() <= original[flat != 0].abs().min()
    assert torch.equal(classifier_head(attacked).weight, classifier_head(model).weight)


def test_layer_pruning_has_the_stated_sparsity_in_each_layer(resnet):
    resnet.resnet.embedder.embedder.convolution.weight.data *= 1000  # global pruning would spare this layer
    for weight in body_weights(MagnitudePrune(0.6, scope="layer")(resnet)):
        assert (weight == 0).sum() == round(0.6 * weight.numel())


def test_pruning_of_equal_magnitudes_removes_no_more_than_asked():
    (mask,) = magnitude_masks([torch.ones(10, 10)], amount=0.25, scope="global")
    assert (~mask).sum() == 25
    (mask,) = magnitude_masks([torch.ones(3)], amount=0.1, scope="global")
    assert mask.all()


def test_finetuning_after_pruning_keeps_zeros_and_moves_the_rest(resnet, data):
    pruned = MagnitudePrune(0.5)(resnet)
    tuned = MagnitudePrune(0.5, finetune_epochs=2, batch_size=16)(resnet, data)
    for before, after in zip(body_weights(pruned), body_weights(tuned), strict=True):
        assert torch.equal(before == 0, after == 0)
        assert not torch.equal(before, after)
    with pytest.raises(ValueError, match="finetune_epochs needs data"):
        MagnitudePrune(0.5, finetune_epochs=2)(resnet)
    with pytest.raises(ValueError, match="learning_rate=0 is not usable"):
        MagnitudePrune(0.5, finetune_epochs=2, learning_rate=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("victim", ["resnet", "timm_resnet", "vit"])
def test_uniform_quantisation_leaves_few_levels_per_channel(bits, victim, request):
    model = request.getfixturevalue(victim)
    for before, after in zip(weights(model), weights(UniformQuantize(bits)(model)), strict=True):
        assert max(len(row.unique()) for row in after) < 2**bits
        step = before.flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)
        assert ((after - before).flatten(1).abs().amax(1) <= 0.5001 * step).all()


def test_a_channel_of_zeros_stays_zero():
    levels, scale = quantize_rows(torch.zeros(2, 3, 1, 1), bits=4)
    assert torch.equal(levels * scale, torch.zeros(2, 3, 1, 1))


def test_int8_in_torch_equals_8_bit_levels(resnet):
    for one, other in zip(weights(Int8Quantize("torch")(resnet)), weights(UniformQuantize(8)(resnet)), strict=True):
        assert torch.equal(one, other)


def test_int8_through_torchao(resnet):
    pytest.importorskip("torchao")
    for before, after in zip(weights(resnet), weights(Int8Quantize("torchao")(resnet)), strict=True):
        step = before.flatten(1).abs().amax(1) / 127
        assert ((after - before).flatten(1).abs().amax(1) <= 0.51 * step).all()
        assert max(len(row.unique()) for row in after) <= 256
        assert not torch.equal(before, after)


def test_int8_names_the_missing_library(resnet, monkeypatch):
    monkeypatch.setattr("hf_watermark.attacks.quantization.is_torchao_available", lambda: False)
    with pytest.raises(ImportError, match="pip install torchao"):
        Int8Quantize("torchao")(resnet)
    auto, torch_only = Int8Quantize()(resnet), Int8Quantize("torch")(resnet)
    assert all(torch.equal(a, b) for a, b in zip(weights(auto), weights(torch_only), strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cast_keeps_only_what_the_dtype_holds(dtype, resnet, images):
    attacked = CastDtype(dtype)(resnet)
    for before, after in zip(resnet.state_dict().values(), attacked.state_dict().values(), strict=True):
        expected = before.to(getattr(torch, dtype)).to(before.dtype) if before.is_floating_point() else before
        assert torch.equal(after, expected)
    assert attacked(pixel_values=images).logits.dtype == torch.float32
