"""What is never certified, attacks that move no answer, and attacks that move only statistics."""

import copy
import hashlib
import math

import numpy as np
import pytest
import torch
from certified_claims import altered, evidence_of, shifted, unfolded
from torch import nn

from hf_watermark import (
    CertifiedVerifier,
    InvalidInput,
    Suspect,
    Verdict,
)
from hf_watermark.attacks import FlipBatchNormSigns, ReestimateBatchNorm
from hf_watermark.keys import SubKey
from hf_watermark.methods.certified import certify
from hf_watermark.methods.certified.noise import (
    weighted_distance,
)
from hf_watermark.methods.certified.verifier import Answers
from hf_watermark.statistics import (
    log2_binomial_tail,
)


# --- Nothing to certify -----------------------------------------------------------------------------------------------


def collapsed(model: nn.Module, label: int) -> nn.Module:
    model = copy.deepcopy(model)
    model.classifier[-1].bias.data[label] += 1e4
    return model


@pytest.mark.parametrize("sigma", [0.1, 2.0])
def test_a_collapsed_network_is_no_evidence(marked, claim, sigma):
    asked = altered(claim, sigma=sigma)
    labels = CertifiedVerifier(asked).labels(asked.subkeys[0])
    for label in (0, int(np.bincount(labels).argmax())):
        network = collapsed(marked.model, label)
        certificate = certify(asked, network, (0.1, 0.5), draws=40)
        assert not certificate.certified and certificate.radius == 0
        evidence = evidence_of(asked, network)
        assert evidence.verdict is Verdict.NOT_FOUND and evidence.log2_p > -18
        assert evidence.details["plain_matches"] == evidence.details["smoothed_matches"] == (labels == label).sum()


def test_one_label_for_all_is_never_evidence(marked, claim):
    one = altered(claim, labels="one")
    labels = CertifiedVerifier(one).labels(one.subkeys[0])
    assert len(set(labels)) == 1
    evidence = evidence_of(one, collapsed(marked.model, labels[0]))
    assert evidence.details["plain_matches"] == evidence.details["smoothed_matches"] == 80
    assert evidence.log2_p == 0 and evidence.verdict is Verdict.NOT_FOUND
    assert any("gives no evidence" in warning for warning in evidence.warnings)
    with pytest.raises(InvalidInput, match="one label for all triggers"):
        certify(one, marked.model, (0.5,))


def test_unmarked_models_are_neither_certified_nor_found(claim, make_resnet, patterned):
    asked = altered(claim, suspect_draws=20)
    images = torch.stack([item["pixel_values"] for item in patterned])
    labels = torch.tensor([item["labels"] for item in patterned])
    seen = []
    for seed in range(20):
        model = make_resnet().train()
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():  # another start for each
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(10 if seed % 2 else 0):
            chosen = torch.randint(len(images), (50,), generator=generator)
            loss = model(images[chosen], labels=labels[chosen]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert not certify(asked, model.eval(), (0.1, 0.5), draws=20).certified
        evidence = evidence_of(asked, model)
        assert evidence.verdict is Verdict.NOT_FOUND
        seen.append(evidence.log2_p)
    # The exact test on 20 independent models of one task: the smallest p-value of 20 is no surprise.
    assert min(seen) > -18


def test_false_positive_rate_is_nominal(marked, claim, make_resnet):
    verifier = CertifiedVerifier(altered(claim, sigma=0.5))
    trials = 2000
    for source in (make_resnet(), marked.model):  # other keys' labels: a marked model is a null model of theirs
        answers = verifier.observe(Suspect.open(source), claim.subkeys[0])
        for observation in (answers, Answers(answers.sources, answers.plain, None)):
            subkeys = [SubKey(0, 0, hashlib.sha256(str(number).encode()).digest()) for number in range(trials)]
            scores = [verifier.score(observation, subkey).log2_p for subkey in subkeys]
            for level in (0.05, 0.01, 0.001):
                passed = sum(score <= math.log2(level) for score in scores)
                assert log2_binomial_tail(passed, trials, level) > -20, (level, passed)


def test_answers_only_and_refusals(marked, claim):
    def endpoint(images):
        with torch.no_grad():
            return marked.model(images).logits.argmax(dim=1)

    evidence = evidence_of(claim, endpoint)
    assert "smoothed_matches" not in evidence.details and evidence.details["plain_matches"] > 70
    assert evidence.warnings == [] or not any("smoothed" in warning for warning in evidence.warnings)
    refusing = evidence_of(claim, lambda images: torch.full((len(images),), -1))
    assert refusing.matches == 0 and refusing.log2_p == 0


def test_another_architecture_is_checked_by_its_answers(claim, make_resnet):
    evidence = evidence_of(claim, make_resnet(hidden_sizes=[16, 32, 32], depths=[1, 1, 1]))
    assert "smoothed_matches" not in evidence.details
    assert any("the smoothed test was left out: not the owner's architecture" in w for w in evidence.warnings)


# --- Attacks that move no answer, and attacks that move only statistics -----------------------------------------------


def rescaled(model: nn.Module, factor: float) -> nn.Module:
    """Every convolution times `factor`, and its BatchNorm told so: the same function."""
    model = copy.deepcopy(model)
    for block in model.modules():
        if hasattr(block, "convolution") and hasattr(block, "normalization"):
            norm_layer = block.normalization
            block.convolution.weight.data *= factor
            norm_layer.running_mean *= factor
            norm_layer.running_var.copy_(factor**2 * (norm_layer.running_var + norm_layer.eps) - norm_layer.eps)
    return model


@pytest.mark.parametrize("factor", [0.1, 8.0])
def test_rescaling_convolutions_is_no_attack(marked, stretched, factor):
    ours, theirs = (evidence_of(stretched, model) for model in (marked.model, rescaled(marked.model, factor)))
    assert theirs.details == ours.details and theirs.log2_p == ours.log2_p
    attacked = {"rescaled": rescaled(marked.model, factor), "flipped": FlipBatchNormSigns()(marked.model, None)}
    distances = certify(stretched, marked.model, (0.5,), draws=20, attacked=attacked).attack_distances
    assert distances == {"rescaled": pytest.approx(0, abs=0.01), "flipped": pytest.approx(0, abs=0.01)}


def test_rescaling_is_an_attack_without_folding(marked, claim):
    raw = altered(unfolded(claim, marked.model), sigma=0.1)
    ours, theirs = (evidence_of(raw, model).details for model in (marked.model, rescaled(marked.model, 0.1)))
    assert theirs["plain_matches"] == ours["plain_matches"]
    assert theirs["smoothed_matches"] < ours["smoothed_matches"]


def test_rewriting_running_statistics_is_a_distance(marked, claim, patterned):
    others = [item | {"pixel_values": 1.3 * item["pixel_values"] + 0.2} for item in patterned[:200]]
    attacked = {"shifted": shifted(marked.model), "reestimated": ReestimateBatchNorm()(marked.model, others)}
    before = dict(marked.model.named_parameters())
    for model in attacked.values():  # not one parameter is touched
        assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    distances = certify(claim, marked.model, (0.5,), draws=20, attacked=attacked).attack_distances
    assert all(0 < distance < math.inf for distance in distances.values()) and set(distances) == set(attacked)

    # In parameters alone it would be no distance at all, so a certificate that speaks of them says that it does not hold.
    blind = unfolded(claim, marked.model)
    verifier = CertifiedVerifier(blind)
    net = verifier.folded(marked.model)
    for model in attacked.values():
        assert weighted_distance(net.coordinates(marked.model), net.coordinates(model), verifier.scales) == 0
    certificate = certify(blind, marked.model, (0.5,), draws=20, attacked=attacked)
    assert certificate.moves == "parameters" and set(certificate.attack_distances.values()) == {math.inf}


def test_distances_are_those_of_the_definition(marked, claim):
    verifier, generator = CertifiedVerifier(claim), torch.Generator().manual_seed(0)
    other = copy.deepcopy(marked.model)
    head = other.classifier[-1]
    head.weight.data += 0.01 * torch.randn(head.weight.shape, generator=generator)
    wanted = (
        float((head.weight - marked.model.classifier[-1].weight).detach().norm())
        / verifier.scales["classifier.1.weight"]
    )
    distances = certify(claim, marked.model, (0.5,), draws=20, attacked={"head": other}).attack_distances
    assert distances["head"] == pytest.approx(wanted / 0.1, abs=1e-3)


@pytest.mark.parametrize(
    "changes", [{"hidden_sizes": [8, 16]}, {"depths": [2, 1]}, {"hidden_sizes": [16], "depths": [1]}]
)
def test_other_architectures_are_infinitely_far(marked, claim, make_resnet, changes):
    attacked = {"distilled into another net": make_resnet(**changes)}
    distances = certify(claim, marked.model, (0.5,), draws=20, attacked=attacked).attack_distances
    assert distances == {"distilled into another net": math.inf}
