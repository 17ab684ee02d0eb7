"""Re-estimated statistics are those of the data; flipped signs change weights and no answer."""

import pytest
import torch
from torch import nn

from hf_watermark.attacks import FlipBatchNormSigns, NotApplicableError, ReestimateBatchNorm
from hf_watermark.attacks.batchnorm import conv_batchnorm_pairs, sample_input


def test_reestimated_statistics_are_those_of_the_data(resnet, data, images):
    attacked = ReestimateBatchNorm(batches=4, batch_size=16)(resnet, data)
    stem = attacked.resnet.embedder.embedder
    features = stem.convolution(images)
    assert torch.allclose(stem.normalization.running_mean, features.mean((0, 2, 3)), atol=1e-5)
    assert stem.normalization.momentum == resnet.resnet.embedder.embedder.normalization.momentum
    assert not torch.allclose(resnet.resnet.embedder.embedder.normalization.running_mean, features.mean((0, 2, 3)))
    for name, parameter in resnet.named_parameters():
        assert torch.equal(parameter, attacked.get_parameter(name))


def test_reestimation_reads_no_more_batches_than_asked(resnet, data):
    attacked = ReestimateBatchNorm(batches=2, batch_size=16)(resnet, data)
    assert {int(m.num_batches_tracked) for m in attacked.modules() if isinstance(m, nn.BatchNorm2d)} == {2}


@pytest.mark.parametrize("fraction", [0.5, 1.0])
@pytest.mark.parametrize("victim", ["resnet", "timm_resnet"])
def test_sign_flips_change_signs_but_no_answer(victim, fraction, request, images):
    model = request.getfixturevalue(victim)
    attacked = FlipBatchNormSigns(fraction)(model)
    with torch.no_grad():
        difference = model(pixel_values=images).logits - attacked(pixel_values=images).logits
    assert difference.abs().max() <= 1e-4
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    flipped = [m for m in attacked.modules() if isinstance(m, nn.Conv2d)]
    for before, after in zip(convs, flipped, strict=True):  # every convolution of these models feeds a BatchNorm
        rows = (after.weight == -before.weight).flatten(1).all(1)
        assert rows.sum() == round(fraction * len(rows))
        assert torch.equal(after.weight[~rows], before.weight[~rows])


def test_sign_flips_handle_biases_and_leave_other_layers_alone(resnet, images):
    stem = resnet.resnet.embedder.embedder.convolution
    stem.bias = nn.Parameter(torch.randn(8))
    attacked = FlipBatchNormSigns()(resnet)
    assert (attacked.resnet.embedder.embedder.convolution.bias == -stem.bias).sum() == 4
    assert torch.allclose(resnet(pixel_values=images).logits, attacked(pixel_values=images).logits, atol=1e-4)
    assert torch.equal(attacked.classifier[1].weight, resnet.classifier[1].weight)


def test_a_convolution_used_twice_is_left_out():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, pixel_values):
            return self.norm(self.conv(self.conv(pixel_values)))

    model = Twice()
    assert conv_batchnorm_pairs(model, torch.zeros(1, 3, 4, 4)) == []
    once = nn.Sequential(model.conv, model.norm)
    once.forward = lambda pixel_values: nn.Sequential.forward(once, pixel_values)
    assert conv_batchnorm_pairs(once, torch.zeros(1, 3, 4, 4)) == [(model.conv, model.norm)]


def test_the_sample_input_fits_the_model(resnet, vit, data):
    assert sample_input(vit, None).shape == (1, 3, 16, 16)
    assert sample_input(resnet, None).shape == (1, 3, 224, 224)
    assert sample_input(resnet, data).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("attack", [ReestimateBatchNorm(), FlipBatchNormSigns()])
def test_a_model_without_batchnorm_is_refused(attack, vit, data):
    with pytest.raises(NotApplicableError, match="ViTForImageClassification has no BatchNorm2d"):
        attack(vit, data)
