"""Rules picked by hand to fit models that were never marked (PROTOCOL.md §1.2, B5, and §3.4)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import patterned_images, tiny_resnet, training_arguments
from transformers import Trainer

from hf_watermark import FunctionCoupledVerifier, Opening, Suspect, Verdict, verify
from hf_watermark.methods.function_coupled.verifier import Answers
from hf_watermark.statistics import LabelLaw, log2_binomial_tail
from hf_watermark.training.triggers import draw_rules


PICKED = 40


@pytest.fixture(scope="module")
def innocent(tmp_path_factory):
    """A trained classifier that never saw a trigger."""
    arguments = training_arguments(tmp_path_factory.mktemp("innocent"), max_steps=60)
    trainer = Trainer(model=tiny_resnet(), args=arguments, train_dataset=patterned_images())
    trainer.train()
    return trainer.model.eval()


@pytest.fixture
def verifier(marked_by):
    return FunctionCoupledVerifier(marked_by("function_coupled").key.claims()[0])


def picked_by_hand(verifier, model) -> Answers:
    """Of all rules there are, those that the innocent model answers with one and the same class: a claimant's favourites."""
    [subkey] = verifier.claim.subkeys
    rules = draw_rules(subkey, 180, verifier.source_classes, verifier.classes, 4, 1)
    labels = Suspect.open(model).labels(verifier.triggers(subkey, rules), verifier.classes).reshape(len(rules), -1)
    candidates = np.array([rule.candidates(verifier.classes) for rule in rules])
    counts = (labels.numpy()[:, :, None] == candidates[:, None, :]).sum(axis=1)
    best = np.argsort(-counts.max(axis=1), kind="stable")[:PICKED]
    picked = [rules[place] for place in best]
    return Answers(picked, labels[torch.from_numpy(best.copy())], counts[best], LabelLaw(counts[best].tolist()))


def test_natural_rules_look_like_proof_to_a_binomial_and_are_none_to_the_relabel_law(innocent, verifier):
    answers, [place] = picked_by_hand(verifier, innocent), verifier.claim.subkeys

    hits, asked = int(answers.counts.max(axis=1).sum()), answers.labels.numel()
    assert log2_binomial_tail(hits, asked, 0.1) < -128, "the attack itself must work, else this test shows nothing"

    # The questions may be anybody's favourites: the targets are drawn by the key, and the law counts draws, not images.
    trials = 1000
    scores = [verifier.score(answers, place.decoy()).log2_p for _ in range(trials)]
    for level in (0.05, 0.01, 0.001):
        assert log2_binomial_tail(sum(score <= np.log2(level) for score in scores), trials, level) > -20
    naive = [log2_binomial_tail(verifier.score(answers, place.decoy()).matches, asked, 0.1) for _ in range(200)]
    # The same draws under the textbook law: one in a thousand is accepted many times as often.
    assert sum(value <= np.log2(0.001) for value in naive) >= 5


def test_picked_rules_and_targets_cannot_be_submitted(innocent, marked_by):
    marked = marked_by("function_coupled")
    opening = Opening.of(marked.key, 0)
    assert not {"rules", "targets", "triggers", "labels"} & opening.to_dict().keys()
    layout = opening.assignment.layout | {"source_classes": [0, 1, 2, 3]}
    config = opening.assignment.config | {"rules": 22}
    edits = {
        "not in the committed tree": replace(opening, secret=bytes(32)),
        "parameters are not the committed ones": replace(
            opening, assignment=replace(opening.assignment, layout=layout)
        ),
        "method's parameters": replace(opening, assignment=replace(opening.assignment, config=config)),
    }
    for words, edited in edits.items():
        evidence = verify(innocent, edited)
        assert evidence.verdict is Verdict.INVALID and words in evidence.reason
    # Properly committed rules are admitted and find nothing.
    assert verify(innocent, opening, beacon=marked.key.beacon).verdict is Verdict.NOT_FOUND
