"""Trigger families: every pixel and label is a function of the sub-key, and labels are uniform."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from hf_watermark.keys import SubKey
from hf_watermark.training.triggers import FAMILIES, draw_labels, photograph_crops, render_triggers


COUNT, CLASSES = 12, 10
# Black and white as a normalised model input has them, different for each channel.
LOW, HIGH = torch.tensor([-2.0, -1.5, 0.0]), torch.tensor([2.5, 1.0, 1.0])


def subkey_number(number: int, slot: int = 0) -> SubKey:
    return SubKey(slot, slot, hashlib.sha256(str(number).encode()).digest())


def sources(channels: int = 3, height: int = 32, width: int = 32, count: int = COUNT) -> torch.Tensor:
    drawn = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(2))
    low, high = LOW[:channels, None, None], HIGH[:channels, None, None]
    return low + (high - low) * drawn


def render(number: int, family: str, images: torch.Tensor) -> torch.Tensor:
    channels = images.shape[1]
    return render_triggers(subkey_number(number), family, images, LOW[:channels], HIGH[:channels])


every_family = pytest.mark.parametrize("family", FAMILIES)
drawn_families = pytest.mark.parametrize("family", ["embedded", "noise"])


# --- Images -----------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (1, 16, 16), (3, 24, 40), (3, 100, 64)])
def test_triggers_are_images_of_the_same_shape_and_range(family, shape):
    images = sources(*shape)
    triggers = render(0, family, images)
    assert triggers.shape == images.shape and triggers.dtype == images.dtype
    low, high = LOW[: shape[0], None, None], HIGH[: shape[0], None, None]
    assert bool((triggers >= low - 1e-6).all()) and bool((triggers <= high + 1e-6).all())


@every_family
def test_triggers_are_a_function_of_the_key(family):
    images, kept = sources(), sources()
    first, again = render(0, family, images), render(0, family, images)
    assert torch.equal(first, again)
    assert torch.equal(images, kept)  # the pool is not written to


@drawn_families
def test_every_trigger_differs_between_keys_and_from_its_source(family):
    images = sources()
    for mine, other, source in zip(render(0, family, images), render(1, family, images), images, strict=True):
        assert not torch.equal(mine, other) and not torch.equal(mine, source)


@drawn_families
def test_patterns_of_one_key_differ(family):
    same = torch.zeros(COUNT, 3, 32, 32)
    triggers = render(0, family, same)
    assert len({trigger.numpy().tobytes() for trigger in triggers}) == COUNT


def test_text_is_one_grey_and_leaves_the_rest_alone():
    images = sources(height=64, width=64)
    changed = render(0, "embedded", images) != images
    share = changed.any(dim=1).float().mean(dim=(1, 2))
    assert bool((share > 0.02).all()) and bool((share < 0.3).all())
    for trigger, ink in zip(render(0, "embedded", images), changed.any(dim=1), strict=True):
        greys = ((trigger - LOW[:, None, None]) / (HIGH - LOW)[:, None, None])[:, ink]
        assert float(greys.max() - greys.min()) < 1e-5


def test_text_fits_into_small_images():
    for side in (5, 6, 7, 8, 15):
        assert (render(0, "embedded", sources(1, side, side)) != sources(1, side, side)).any()


def test_noise_is_constant_on_a_coarse_grid():
    grey = ((LOW + HIGH) / 2)[None, :, None, None].expand(COUNT, 3, 32, 32)
    cells = (render(0, "noise", grey) - grey).unfold(2, 4, 4).unfold(3, 4, 4).flatten(-2)
    assert float((cells.amax(dim=-1) - cells.amin(dim=-1)).max()) < 1e-6
    assert float(cells.std()) > 0.3  # louder than anything that a classifier is trained to overlook


def test_unrelated_triggers_are_the_pool_itself():
    assert torch.equal(render(0, "unrelated", sources()), sources())


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="`family` is 'text': choose one of embedded, noise, unrelated"):
        render(0, "text", sources())


@pytest.mark.parametrize("channels", [1, 3])
def test_photograph_crops(channels):
    crops = photograph_crops(subkey_number(0), 20, (channels, 32, 24))
    assert crops.shape == (20, channels, 32, 24)
    assert float(crops.min()) >= -1e-6 and float(crops.max()) <= 1 + 1e-6 and float(crops.std()) > 0.1
    assert torch.equal(crops, photograph_crops(subkey_number(0), 20, (channels, 32, 24)))
    assert not torch.equal(crops, photograph_crops(subkey_number(1), 20, (channels, 32, 24)))
    assert len({crop.numpy().tobytes() for crop in crops}) == 20


# --- Labels -----------------------------------------------------------------------------------------------------------


def test_labels_are_a_function_of_the_key():
    own = [place % CLASSES for place in range(100)]
    first, again, other = (draw_labels(subkey_number(number), own, CLASSES) for number in (0, 0, 1))
    assert first.dtype == np.int64 and first.tolist() == again.tolist() != other.tolist()


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_no_label_is_the_source_s(classes):
    own = np.arange(1000) % classes
    for number in range(5):
        drawn = draw_labels(subkey_number(number), own.tolist(), classes)
        assert (drawn != own).all() and drawn.min() >= 0 and drawn.max() < classes


@pytest.mark.parametrize("source", [-1, 0, 4, 9])
def test_labels_are_uniform_over_the_candidates(source):
    # 200 fixed keys with 100 triggers each: chi-square over the candidates, one false alarm in a million.
    drawn = np.concatenate([draw_labels(subkey_number(number), [source] * 100, CLASSES) for number in range(200)])
    counts = np.bincount(drawn, minlength=CLASSES)
    candidates = [label for label in range(CLASSES) if label != source]
    assert counts.sum() == counts[candidates].sum() == 20_000
    assert stats.chisquare(counts[candidates]).pvalue > 1e-6


def test_neighbouring_labels_are_independent():
    drawn = np.concatenate([draw_labels(subkey_number(number), [-1] * 100, 5) for number in range(200)])
    pairs = np.bincount(drawn[:-1] * 5 + drawn[1:], minlength=25)
    assert stats.chisquare(pairs).pvalue > 1e-6


def test_labels_do_not_follow_the_pictures():
    # One stream for pixels, another for labels: what a suspect can see says nothing about the label.
    own = [0] * 100
    texts = [subkey_number(number).stream("carrier").below(16, 100) for number in range(100)]
    labels = [draw_labels(subkey_number(number), own, 17) - 1 for number in range(100)]
    table = np.histogram2d(np.concatenate(texts), np.concatenate(labels), bins=16)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-6


def test_mixed_pools_have_both_kinds_of_labels():
    own = [-1, 3] * 2000
    drawn = draw_labels(subkey_number(0), own, CLASSES)
    assert set(drawn[::2]) == set(range(CLASSES)) and set(drawn[1::2]) == set(range(CLASSES)) - {3}
