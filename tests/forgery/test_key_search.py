"""Trying many keys: the fast table counts like the verifier, and the best of many stays where chance puts it."""

from dataclasses import replace

import numpy as np
import pytest

from hf_watermark import GreedyResidualsVerifier, Suspect
from hf_watermark.forgery import search_keys
from hf_watermark.forgery.key_search import SignTable, first_of_shuffles, table_pays
from hf_watermark.keys import Stream


@pytest.mark.parametrize("slot", [0, 1])
def test_the_table_counts_like_the_verifier(marked_by, slot):
    marked = marked_by("greedy_residuals")
    claim = marked.key.claims()[0]
    verifier, true = GreedyResidualsVerifier(claim), claim.subkeys[slot]
    observation = verifier.observe(Suspect.open(marked.model), true)
    tried = [true, *(true.decoy() for _ in range(200))]

    counted = SignTable(verifier, observation, true).matches(tried)

    assert counted.tolist() == [verifier.score(observation, subkey).matches for subkey in tried]
    assert counted[0] > 120, "the true key is the positive control"


def test_many_shuffles_at_once_are_the_shuffles_of_the_streams():
    secrets = [bytes([number]) * 32 for number in range(5)]

    together = first_of_shuffles(np.stack([Stream(secret, "carrier").words(20) for secret in secrets]), 31)

    assert together.tolist() == [Stream(secret, "carrier").distinct(31, 20).tolist() for secret in secrets]


@pytest.mark.parametrize("count", [50, 20_000])
def test_the_best_of_many_keys_stays_within_the_bound(marked_by, count):
    marked = marked_by("greedy_residuals")

    result = search_keys(marked.model, marked.key, count)

    assert result.details["seeds"] == count
    assert result.details["bound_log2_p"] < result.details["best_log2_p"] < -1
    assert result.details["expected_log2_p"] == pytest.approx(-np.log2(count), abs=0.01)
    assert not result.passed and result.refused is None


def test_the_table_is_made_only_when_it_pays(marked_by):
    claim = marked_by("greedy_residuals").key.claims()[0]
    verifier, place = GreedyResidualsVerifier(claim), claim.subkeys[0]

    assert not table_pays(verifier, place, 10)
    assert table_pays(verifier, place, 100_000)


def test_targets_of_rules_can_be_searched_too(marked_by):
    marked = marked_by("function_coupled")

    result = search_keys(marked.model, marked.key, 100, method="function_coupled")

    assert result.details["best_log2_p"] > result.details["bound_log2_p"]


def test_the_search_does_not_use_the_secrets_of_the_key(marked_by):
    marked = marked_by("greedy_residuals")
    other = replace(marked.key, seed=bytes(32))

    # With the true secret among the tried ones, the result would be the mark itself.
    assert search_keys(marked.model, other, 20).details["best_log2_p"] > -30
    assert search_keys(marked.model, marked.key, 20).details["best_log2_p"] > -30


def test_no_key_at_all_is_refused(marked_by):
    marked = marked_by("greedy_residuals")

    with pytest.raises(ValueError, match="`count` is 0"):
        search_keys(marked.model, marked.key, 0)
