"""Mixture weights of merges whose recipe is known."""

import pytest
import torch

from hf_watermark.serialization import InvalidInput
from hf_watermark.watch.mixture import mixture_of


def parents(count=3, tensors=20, apart=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = {f"layer{n}.weight": torch.randn(16, 24, generator=generator) for n in range(tensors)}
    return {
        f"parent{p}": {name: t + apart * torch.randn(t.shape, generator=generator) for name, t in base.items()}
        | {"bias": torch.zeros(3)}
        for p in range(count)
    }


def merged(models, weights, noise=0.0, seed=1):
    generator = torch.Generator().manual_seed(seed)
    names = list(next(iter(models.values())))
    mix = {name: sum(w * model[name] for w, model in zip(weights, models.values(), strict=True)) for name in names}
    return {name: tensor + noise * torch.randn(tensor.shape, generator=generator) for name, tensor in mix.items()}


def test_an_exact_merge_is_taken_apart():
    models = parents()
    found = mixture_of(merged(models, (0.5, 0.3, 0.2)), models)

    assert list(found.weights.values()) == pytest.approx([0.5, 0.3, 0.2], abs=1e-6)
    assert found.explained == pytest.approx(1.0, abs=1e-6) and found.tensors == 20


def test_intervals_hold_the_truth_and_shrink_with_the_noise():
    models, truth = parents(), (0.7, 0.4, -0.1)  # task arithmetic goes beyond the parents
    inside, widths = 0, {}
    for seed in range(40):
        found = mixture_of(merged(models, truth, noise=0.1, seed=seed), models)
        inside += sum(low <= want <= high for (low, high), want in zip(found.intervals.values(), truth, strict=True))
        widths[0.1] = found.intervals["parent0"][1] - found.intervals["parent0"][0]
    assert inside >= 0.87 * 120 and sum(found.weights.values()) == pytest.approx(1)
    quiet = mixture_of(merged(models, truth, noise=0.01), models)
    assert quiet.intervals["parent0"][1] - quiet.intervals["parent0"][0] < widths[0.1] / 3


def test_a_stranger_is_no_merge():
    models = parents()
    found = mixture_of(parents(1, seed=7)["parent0"], models)

    assert found.explained < 0.5


def test_what_cannot_be_told_is_an_error():
    models = parents()
    twin = {"a": models["parent0"], "b": models["parent0"]}
    with pytest.raises(InvalidInput, match="cannot be told apart"):
        mixture_of(models["parent0"], twin)
    with pytest.raises(InvalidInput, match="at least the two"):
        mixture_of(models["parent0"], {"a": models["parent0"]})
    with pytest.raises(InvalidInput, match="in common"):
        mixture_of({"other": torch.ones(2, 2)}, models)
