"""The sequential test: it stops early, keeps its budget and its level, and goes on to the next sub-key."""

import dataclasses
import hashlib
import re

import numpy as np
import pytest
import torch

from hf_watermark import InvalidInput, Opening, Suspect, Verdict, WatermarkKey, verify, verify_sequentially
from hf_watermark.evidence import Access
from hf_watermark.mapping import METHODS
from hf_watermark.statistics import log2_binomial_tail, log2_e_relabel
from hf_watermark.suspects import AccessError, BudgetExceeded


LABEL_METHODS = [method for method, entry in METHODS.items() if entry.access == "labels"]
SOFT_METHODS = [method for method, entry in METHODS.items() if entry.access == "probabilities"]
QUERIED = [*LABEL_METHODS, *SOFT_METHODS]


def answers(model, share: float = 1.0, seed: int = 0):
    """A function that gives labels, a `1 - share` part of them at random."""
    generator = torch.Generator().manual_seed(seed)

    def answer(images):
        with torch.no_grad():
            labels = model(images).logits.argmax(dim=1)
        other = torch.rand(len(labels), generator=generator) >= share
        return torch.where(other, torch.randint(10, labels.shape, generator=generator), labels)

    return answer


def with_seed(key: WatermarkKey, owner, seed: bytes | None = None, subkeys: int | None = None) -> WatermarkKey:
    """The same methods and source images under another seed of another owner."""
    plans = [(a.method, a.version, a.config, a.layout, subkeys or len(a.subkeys)) for a in key.assignments]
    return WatermarkKey.create(owner, plans, seed=seed, pool=key.pool, context=key.context)


@pytest.mark.parametrize("method", QUERIED)
def test_it_stops_as_soon_as_the_evidence_is_in(marked_by, method):
    marked = marked_by(method)
    suspect = Suspect.open(marked.model)
    result = verify_sequentially(suspect, marked.key, beacon=marked.key.beacon)
    assert result.evidence.found and result.evidence.log2_p <= -64
    assert result.queries == suspect.queries
    everything = Suspect.open(marked.model)
    verify(everything, marked.key)
    assert result.queries < everything.queries or method in SOFT_METHODS
    path = result.evidence.parts[0].details["path"]
    assert path[-1][0] == result.queries and [step[0] for step in path] == sorted({step[0] for step in path})


@pytest.mark.parametrize("method", LABEL_METHODS)
def test_labels_are_enough(marked_by, method):
    marked = marked_by(method)
    result = verify_sequentially(answers(marked.model), marked.key, beacon=marked.key.beacon)
    assert result.evidence.found and result.evidence.access == {Access.LABELS}
    noisy = verify_sequentially(answers(marked.model, 0.8), marked.key, beacon=marked.key.beacon)
    assert noisy.queries >= result.queries and noisy.evidence.rate < result.evidence.rate


@pytest.mark.parametrize("method", LABEL_METHODS)
def test_an_unmarked_suspect_costs_few_queries(marked_by, make_resnet, method):
    marked = marked_by(method)
    result = verify_sequentially(make_resnet(), marked.key, beacon=marked.key.beacon)
    assert result.evidence.verdict == "not found" and result.evidence.log2_p > -20


@pytest.mark.parametrize("method", QUERIED)
@pytest.mark.parametrize("budget", [1, 5])
def test_a_budget_that_cannot_show_the_mark_is_refused_before_anything_is_asked(marked_by, method, budget):
    marked = marked_by(method)
    suspect, shown = Suspect.open(marked.model), []
    with pytest.raises(
        BudgetExceeded, match=rf"{budget} images cannot reach 128 bits .* this key needs about \d+"
    ) as caught:
        verify_sequentially(suspect, marked.key, budget=budget, before_asking=shown.append)
    assert suspect.queries == 0 and shown == []
    # The number that it names is enough to ask, and no smaller one is.
    least = int(re.search(r"needs about (\d+)", str(caught.value))[1])
    assert verify_sequentially(suspect, marked.key, budget=least).queries <= least
    with pytest.raises(BudgetExceeded):
        verify_sequentially(suspect, marked.key, budget=least - 1)
    with pytest.raises(InvalidInput, match="`budget` is 0"):
        verify_sequentially(marked.model, marked.key, budget=0)


@pytest.mark.parametrize("method", QUERIED)
def test_a_marked_model_is_never_called_unmarked_for_a_small_budget(marked_by, method):
    marked, verdicts = marked_by(method), {}
    for budget in (12, 25, 30, 45, 60, 90, 150):
        for share in (1.0, 0.7, 0.4):
            asked = marked.model if method in SOFT_METHODS else answers(marked.model, share, seed=budget)
            try:
                evidence = verify_sequentially(asked, marked.key, budget=budget, beacon=marked.key.beacon).evidence
            except BudgetExceeded:
                continue
            assert evidence.queries <= budget == evidence.details["budget"]
            verdicts[budget, share] = evidence.verdict
            assert evidence.verdict is not Verdict.NOT_FOUND, (budget, share, evidence, evidence.reason)
            for part in (*evidence.parts, *evidence.by_method.values()):
                assert part.verdict is not Verdict.NOT_FOUND, (budget, share, part.reason)
    assert Verdict.FOUND in verdicts.values() and Verdict.INCONCLUSIVE in verdicts.values()


@pytest.mark.parametrize("method", LABEL_METHODS)
def test_an_unmarked_model_is_called_so_where_the_mark_would_have_shown(marked_by, method):
    marked = marked_by(method)
    never = lambda images: torch.full((len(images),), 0)  # noqa: E731
    with pytest.raises(BudgetExceeded) as caught:
        verify_sequentially(never, marked.key, budget=1)
    least = int(re.search(r"needs about (\d+)", str(caught.value))[1])
    evidence = verify_sequentially(never, marked.key, budget=least).evidence
    assert evidence.verdict is Verdict.NOT_FOUND, evidence.reason


def test_soft_labels_are_excluded_by_all_images_only(marked_by, make_resnet):
    marked = marked_by("usp")
    everything = verify_sequentially(make_resnet(), marked.key)
    assert everything.evidence.verdict is Verdict.NOT_FOUND
    some = verify_sequentially(make_resnet(), marked.key, budget=everything.queries - 1)
    assert some.evidence.verdict is Verdict.INCONCLUSIVE
    # Which of the two depends on the net: half of all unmarked ones speak a little for a key.
    reasons = ("fewer cannot exclude such a mark: raise it", "images speak for it, and the budget ended: raise it")
    assert any(reason in some.evidence.reason for reason in reasons)


@pytest.mark.parametrize("method", QUERIED)
def test_the_plain_test_says_when_the_budget_does_not_suffice(marked_by, method):
    marked, suspect = marked_by(method), Suspect.open(marked_by(method).model)
    with pytest.raises(
        BudgetExceeded, match=r"this check asks \d+ images, 9 are left of its budget; raise the budget"
    ):
        verify(suspect, marked.key, budget=9)
    assert suspect.queries == 0
    assert verify(suspect, marked.key, budget=1000).trials


def test_white_box_keys_cannot_be_asked(marked_by):
    marked = marked_by("greedy_residuals")
    with pytest.raises(AccessError, match="no method that can be asked in steps"):
        verify_sequentially(marked.model, marked.key)


def test_probabilities_are_needed_by_soft_labels(marked_by):
    marked = marked_by("usp")
    result = verify_sequentially(answers(marked.model), marked.key)
    assert result.evidence.verdict is Verdict.INCONCLUSIVE and "cannot decide from labels" in result.evidence.reason
    assert result.evidence.unusable == result.queries > 0


def test_an_opening_can_be_asked(marked_by):
    marked = marked_by("certified")
    opening = Opening.of(marked.key, 0)
    assert verify_sequentially(marked.model, opening, beacon=marked.key.beacon).evidence.found
    spoilt = dataclasses.replace(opening, secret=bytes(32))
    result = verify_sequentially(marked.model, spoilt)
    assert result.evidence.verdict == "invalid claim" and result.queries == 0


def test_looks_make_it_ask_more(marked_by):
    marked = marked_by("certified")
    once = verify_sequentially(marked.model, marked.key, beacon=marked.key.beacon)
    often = verify_sequentially(marked.model, marked.key, beacon=marked.key.beacon, looks=2**20)
    assert often.queries > once.queries and often.evidence.found


@pytest.mark.parametrize("method", LABEL_METHODS)
def test_optional_stopping_keeps_the_level(marked_by, make_resnet, owner, method, monkeypatch):
    """Keys drawn afterwards, asked of one model with the strongest incentive to stop: the e-value reaches 1/alpha in at most alpha of all."""
    monkeypatch.setattr("hf_watermark.verification.sequential.decoys_of", lambda *_: [])
    key, suspect = marked_by(method).key, Suspect.open(make_resnet())
    reached = []
    for number in range(30):
        other = with_seed(key, owner, hashlib.sha256(str(number).encode()).digest())
        [part] = verify_sequentially(suspect, other).evidence.parts
        reached.append(max(log2_e for _, log2_e in part.details["path"]))
    passed = int((np.array(reached) >= np.log2(20)).sum())
    assert log2_binomial_tail(passed, len(reached), 0.05) > -20


def test_relabel_e_values_have_mean_one():
    counts = np.array([[4, 0, 0], [2, 1, 1], [0, 0, 3], [0, 0, 0]])
    values = [2 ** log2_e_relabel(counts, counts[np.arange(4), list(places)]) for places in np.ndindex(3, 3, 3, 3)]
    assert np.mean(values) == pytest.approx(1)
    assert log2_e_relabel(np.zeros((0, 3)), np.zeros(0)) == pytest.approx(0)
    # Thirty rules of four images, all right, among eight candidates: close to the three bits per rule that the key drew.
    clear = np.zeros((30, 8))
    clear[:, 0] = 4
    assert 85 < log2_e_relabel(clear, clear[:, 0]) < 90
    with pytest.raises(ValueError, match="do not belong together"):
        log2_e_relabel(counts, np.array([3, 0, 0, 0]))
