"""A new key for a model that carries an earlier one: both are read from the new version."""

import copy

import pytest
import torch
from shops import open_shop
from tiny import patterned_images, training_arguments

from hf_watermark import (
    FunctionCoupledTrainer,
    GreedyResidualsConfig,
    GreedyResidualsTrainer,
    InvalidInput,
    Watermark,
    WaterMASTrainer,
    plan_key,
    verify,
)


CONFIG = GreedyResidualsConfig(bits=256, group_size=32, subkeys=3, strength=1.0)


@pytest.fixture
def version_1(shop):
    """A marked model of its owner's, to be changed."""
    from transformers import AutoModelForImageClassification

    return AutoModelForImageClassification.from_pretrained(shop.folder)


def rotated(model, shop, place, keep):
    trainer = GreedyResidualsTrainer(
        model=model, args=training_arguments(place), watermark=CONFIG, owner=shop.owner, keep=keep
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        trainer.watermark_loss().backward()
        optimizer.step()
    return trainer.key


def test_the_old_key_is_held_while_the_new_one_goes_in(shop, version_1, tmp_path):
    other = copy.deepcopy(version_1)
    new = rotated(version_1, shop, tmp_path, [shop.key])
    kept = verify(version_1, shop.key)
    # Keys are random and the steps few: two of 512 bits may still be on their way.
    assert verify(version_1, new).rate > 0.995 and verify(version_1, new).found
    assert kept.rate > 0.995 and kept.found
    # Without it, the new mark costs the old one some bits; their groups overlap.
    rotated(other, shop, tmp_path, [])
    assert 0.9 < verify(other, shop.key).rate < kept.rate


def test_a_loop_of_ones_own_holds_earlier_keys_too(shop, version_1, caplog):
    watermark = Watermark(version_1, CONFIG, owner=shop.owner, keep=[shop.key])
    optimizer = watermark.watch(torch.optim.Adam(version_1.parameters(), lr=3e-3))
    for _ in range(60):
        optimizer.zero_grad()
        watermark.loss().backward()
        optimizer.step()
    assert watermark.verify().found and verify(version_1, shop.key).rate > 0.99
    assert "was to be kept" not in caplog.text
    with torch.no_grad():
        for weight in version_1.parameters():
            weight.copy_(torch.randn(weight.shape))
    assert not watermark.verify().found
    assert "was to be kept and is not in the trained model" in caplog.text


def test_three_versions(shop, version_1, tmp_path):
    second = rotated(version_1, shop, tmp_path, [shop.key])
    third = rotated(version_1, shop, tmp_path, [shop.key, second])
    assert all(verify(version_1, key).found for key in (shop.key, second, third))
    assert len({key.precommit for key in (shop.key, second, third)}) == 3
    # The new key belongs to the version from which it started.
    assert third.context.start != second.context.start != shop.key.context.start


def test_keys_that_cannot_be_kept(shop, version_1, tmp_path):
    name = shop.key.precommit.hex()[:16]
    arguments = {"args": training_arguments(tmp_path), "owner": shop.owner, "keep": [shop.key]}
    with pytest.raises(
        InvalidInput, match=f"the key {name} marks with `greedy_residuals`, which this trainer does not"
    ):
        WaterMASTrainer(model=version_1, **arguments)
    other = open_shop(tmp_path / "other", seed=4)
    with pytest.raises(InvalidInput, match="is not in this model; start from the model that carries it"):
        GreedyResidualsTrainer(model=version_1, **arguments | {"keep": [other.key]})
    with pytest.raises(InvalidInput, match=r"`keep` is .*: give what WatermarkKey.load"):
        GreedyResidualsTrainer(model=version_1, **arguments | {"keep": [str(shop.keys)]})


def test_a_mark_that_training_loses_is_named(shop, version_1, tmp_path, caplog):
    fields = {"max_steps": 3, "learning_rate": 30.0}
    data = [{"pixel_values": image, "labels": row % 10} for row, image in enumerate(torch.randn(60, 1, 32, 32))]
    trainer = GreedyResidualsTrainer(
        model=version_1, args=training_arguments(tmp_path, **fields), train_dataset=data, watermark=CONFIG,
        owner=shop.owner, keep=[shop.key],
    )  # fmt: skip
    trainer.train()
    assert f"the key {shop.key.precommit.hex()[:16]} (" in caplog.text and "was to be kept" in caplog.text


def test_two_black_box_keys(marked_by, tmp_path, caplog):
    """Some rules of the two keys ask one pair of classes for two answers, so neither gets all of its triggers."""
    first = marked_by("function_coupled")
    model, data = copy.deepcopy(first.model), patterned_images()
    config = first.trainer.embeddings[0].config
    key = plan_key(model, data, config, first.owner).bind_beacon(b"\x09" * 32, "a value of a test")
    trainer = FunctionCoupledTrainer(
        model=model, args=training_arguments(tmp_path, max_steps=180), train_dataset=data, key=key, keep=[first.key]
    )
    # Neither takes the other's triggers for pictures of their targets.
    batch = {
        "pixel_values": torch.stack([data[row]["pixel_values"] for row in range(40)]),
        "labels": torch.arange(40) % 10,
    }
    mixed = [batch]
    for embedding in trainer.embeddings:
        mixed.append(embedding.extend(mixed[-1]))
    assert [len(item["labels"]) for item in mixed] == [40, 80, 120]
    trainer.train()
    for one in (first.key, key):
        assert verify(model, one, beacon=one.beacon).found
    assert "was to be kept" not in caplog.text
