"""The digits: a fixed split, standardised with training statistics, and a net that fits them."""

import pytest
import torch

from hf_watermark.evaluation.digits import build_digits_model, load_digits_data


def stacked(split: str) -> torch.Tensor:
    return torch.stack([example["pixel_values"] for example in load_digits_data(split)])


def test_the_split_is_fixed_and_disjoint():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    train, test = stacked("train"), stacked("test")

    assert train.shape == (1437, 1, 32, 32) and test.shape == (360, 1, 32, 32) and train.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state is left alone"
    assert torch.equal(stacked("test"), test)
    assert {image.numpy().tobytes() for image in train}.isdisjoint(image.numpy().tobytes() for image in test)


def test_pixels_are_standardised_with_training_statistics():
    train, test = stacked("train"), stacked("test")

    assert train.mean().item() == pytest.approx(0, abs=1e-4) and train.std().item() == pytest.approx(1, abs=1e-4)
    assert abs(test.mean().item()) > 1e-4, "statistics of the test split were used"


def test_every_class_is_in_both_splits():
    for split in ("train", "test"):
        assert {example["labels"] for example in load_digits_data(split)} == set(range(10))


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="`split` is 'validation'"):
        load_digits_data("validation")


def test_the_net_depends_on_its_seed_alone():
    one, same, other = build_digits_model(1), build_digits_model(1), build_digits_model(2)

    assert 300_000 < one.num_parameters() < 330_000
    assert one(stacked("test")[:2]).logits.shape == (2, 10)
    weights = [model.classifier[1].weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
