"""A second key in a stolen model: it takes hold there, it proves nothing about the original, and the first key stays."""

import json

import pytest

from hf_watermark import Owner, verify
from hf_watermark.forgery import overwrite


@pytest.fixture(scope="module")
def overwritten(marked_by):
    victim = marked_by("greedy_residuals")
    data, configs = victim.trainer.train_dataset, [item.config for item in victim.trainer.embeddings]
    return victim, overwrite(victim.model, data, Owner.create(), configs, epochs=12, learning_rate=2e-3)


def test_the_second_key_takes_hold_in_the_copy(overwritten):
    _, forged = overwritten

    assert verify(forged.model, forged.key).log2_p < -40
    assert forged.details["own_copy_log2_p"] < -40


def test_the_first_key_is_still_found(overwritten):
    victim, forged = overwritten

    assert verify(forged.model, victim.key, beacon=victim.key.beacon).found


def test_the_second_key_proves_nothing_about_the_stolen_model(overwritten):
    victim, forged = overwritten

    assert not forged.passed
    assert forged.evidence.log2_p > -20
    assert verify(victim.model, victim.key).found


def test_the_result_as_json_holds_no_key(overwritten):
    _, forged = overwritten

    text = json.dumps(forged.to_dict())

    assert forged.key.seed.hex() not in text
    assert "model" not in forged.to_dict() and "key" not in forged.to_dict()
