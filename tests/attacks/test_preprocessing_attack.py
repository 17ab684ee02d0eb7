"""Filters do to pixels what they say; the served model is the model behind the filter, and saves and loads."""

import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_watermark.attacks import FineTune, NotApplicableError, PreprocessInput, Stack
from hf_watermark.attacks.preprocessing import AMOUNTS, filter_pixels, pixel_range


def pictures(seed: int = 0) -> torch.Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("transform", AMOUNTS)
def test_filters_keep_shape_and_range_and_change_pixels(transform):
    filtered = filter_pixels(pictures(), transform, AMOUNTS[transform][0], seed=0)
    assert filtered.shape == (5, 3, 16, 16) and filtered.dtype == torch.float32
    assert filtered.min() >= 0 and filtered.max() <= 1
    assert not torch.allclose(filtered, pictures(), atol=1e-3)


def test_filters_by_hand():
    speck = torch.zeros(1, 1, 9, 9)
    speck[..., 4, 4] = 1
    assert filter_pixels(speck, "median", 3, 0).max() == 0
    mean = filter_pixels(speck, "mean", 3, 0)
    assert torch.allclose(mean[..., 3:6, 3:6], torch.full((1, 1, 3, 3), 1 / 9)) and mean.sum() == pytest.approx(1)
    blurred = filter_pixels(speck, "gaussian", 1.0, 0)
    assert blurred[..., 4, 4].item() == pytest.approx(1 / (2 * torch.pi), rel=0.02)
    assert torch.equal(filter_pixels(pictures(), "flip", 0, 0), pictures().flip(3))
    assert torch.allclose(filter_pixels(pictures(), "rotate", 180, 0), pictures().flip(2, 3), atol=1e-4)
    assert len(filter_pixels(pictures(), "quantize", 4, 0).unique()) == 4
    noisy = filter_pixels(torch.full((1, 3, 64, 64), 0.5), "noise", 0.1, 0)
    assert noisy.std().item() == pytest.approx(0.1, rel=0.05) and noisy.mean().item() == pytest.approx(0.5, abs=0.01)
    coarse, fine = (filter_pixels(pictures(), "jpeg", quality, 0) for quality in (5, 95))
    assert (coarse - pictures()).abs().mean() > (fine - pictures()).abs().mean() > 0


def test_the_pixel_range_is_read_from_the_images(data, images):
    low, high = pixel_range(data)
    assert torch.allclose(torch.tensor(low), images.amin((0, 2, 3)))
    assert torch.allclose(torch.tensor(high), images.amax((0, 2, 3)))
    flat = [{"pixel_values": torch.full((1, 2, 2), 3.0), "labels": 0}]
    assert pixel_range(flat) == ([3.0], [4.0])


@pytest.mark.parametrize("victim", ["resnet", "timm_resnet", "vit"])
def test_answers_are_those_of_the_model_to_filtered_images(victim, request, data, images):
    model = request.getfixturevalue(victim)
    served = PreprocessInput("flip")(model, data)
    with torch.no_grad():
        expected = model(pixel_values=images.flip(3)).logits
        assert torch.allclose(served(pixel_values=images).logits, expected, atol=1e-4)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, served.state_dict()[f"backbone.{name}"])


def test_noise_is_new_in_each_request_and_repeats_with_the_seed(resnet, data, images):
    def answers(seed):
        served = PreprocessInput("noise", 0.1, seed=seed)(resnet, data)
        with torch.no_grad():
            return [served(pixel_values=images).logits for _ in range(2)]

    first, second = answers(0)
    assert not torch.allclose(first, second, atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip((first, second), answers(0), strict=True))


@pytest.mark.parametrize("victim", ["resnet", "timm_resnet"])
def test_it_saves_and_loads(victim, request, data, images, tmp_path):
    served = PreprocessInput("jpeg", 50)(request.getfixturevalue(victim), data)
    served.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(loaded(pixel_values=images).logits, served(pixel_values=images).logits, atol=1e-5)


def test_the_served_model_can_be_fine_tuned(resnet, data, images, labels):
    stack = Stack((PreprocessInput("mean", 3), FineTune(learning_rate=0.05, epochs=4, batch_size=16)))
    before = PreprocessInput("mean", 3)(resnet, data)(pixel_values=images, labels=labels).loss
    after = stack(resnet, data)(pixel_values=images, labels=labels).loss
    assert after < before / 2


def test_images_that_jpeg_cannot_hold(resnet):
    two = [{"pixel_values": torch.rand(2, 8, 8), "labels": 0}]
    with pytest.raises(NotApplicableError, match="JPEG holds 1 or 3 channels; these images have 2"):
        PreprocessInput("jpeg")(resnet, two)
