"""Claims fitted to a stolen model: refused before the model is looked at, and worthless under a new commitment."""

from dataclasses import replace

import pytest
import torch

from hf_watermark import Opening, Owner, Verdict, verify
from hf_watermark.forgery import adversarial_triggers, counterfeit, fresh_key
from hf_watermark.keys import ProblemKind


def test_a_free_message_would_fit_and_every_way_to_submit_it_is_refused(marked_by):
    victim = marked_by("greedy_residuals")

    results = {result.name: result for result in counterfeit(victim.model, victim.key, tries=20)}

    assert results["counterfeit_secret"].details["bits_if_the_message_were_free"] == "128/128"
    refused = results["counterfeit_secret"].refused
    assert refused.startswith("sub-key, methods and model record are not in the committed tree")
    assert "the sub-key does not follow from leaf, beacon and commitment" in refused
    for edited in ("counterfeit_config", "counterfeit_layout"):
        assert results[edited].refused == "the method's parameters are not the committed ones"
    for result in results.values():
        assert result.evidence.verdict is Verdict.INVALID and not result.passed


def test_an_edited_layout_is_refused_even_with_a_matching_list_of_methods(marked_by):
    victim = marked_by("greedy_residuals")
    opening = Opening.of(fresh_key(victim.key), 0)
    edited = replace(opening.assignment, config={**opening.assignment.config, "bits": 64})

    claim = replace(opening, assignment=edited, shares=(edited.share,))

    [problem] = claim.problems()
    assert problem.kind is ProblemKind.TREE
    assert str(problem) == "sub-key, methods and model record are not in the committed tree"


def test_an_honest_opening_of_a_fresh_key_is_admitted_and_not_found(marked_by):
    victim = marked_by("greedy_residuals")
    own = fresh_key(victim.key, Owner.create())

    evidence, public = (verify(victim.model, Opening.of(own, index)) for index in (1, 0))

    assert evidence.verdict is Verdict.NOT_FOUND
    assert public.verdict is Verdict.INCONCLUSIVE and "disclosed" in public.reason
    assert own.seed != victim.key.seed and own.public_key != victim.key.public_key


def test_adversarial_triggers_fool_the_model_and_not_the_judge(marked_by):
    victim = marked_by("function_coupled")

    result = adversarial_triggers(victim.model, victim.key, steps=30)

    assert result.details["log2_p_if_accepted"] < -20, "the attack itself must work, else this test shows nothing"
    assert result.refused.startswith("the pool of the opening: its digest is not the one in the key")
    assert result.evidence.verdict is Verdict.INVALID
    assert result.details["recommitted_verdict"] == "not found"
    assert result.details["log2_p_recommitted"] > -20


def test_the_radius_keeps_adversarial_images_close(marked_by):
    victim = marked_by("function_coupled")
    free = adversarial_triggers(victim.model, victim.key, steps=5)
    close = adversarial_triggers(victim.model, victim.key, steps=5, radius=0.0)

    assert close.details["log2_p_if_accepted"] > free.details["log2_p_if_accepted"]


def test_an_opening_without_its_images_is_refused(marked_by):
    opening = Opening.of(marked_by("function_coupled").key, 0)

    assert opening.problems() == []
    assert "missing" in str(replace(opening, pool={}).problems()[0])
    doubled = {name: tensor.clone() for name, tensor in opening.pool.items()}
    doubled["function_coupled.images"] += 1
    assert "digest" in str(replace(opening, pool=doubled).problems()[0])


def test_a_forgery_about_another_method_says_so(marked_by):
    with pytest.raises(ValueError, match="`function_coupled`, the key marks with \\['greedy_residuals'\\]"):
        adversarial_triggers(marked_by("greedy_residuals").model, marked_by("greedy_residuals").key)


def test_a_forgery_leaves_the_stolen_model_as_it_was(marked_by):
    victim = marked_by("function_coupled")
    before = {name: tensor.clone() for name, tensor in victim.model.state_dict().items()}

    adversarial_triggers(victim.model, victim.key, steps=1)

    assert all(torch.equal(tensor, before[name]) for name, tensor in victim.model.state_dict().items())
    assert all(parameter.grad is None for parameter in victim.model.parameters())
