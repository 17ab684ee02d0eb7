"""What a certificate promises, and when its draws may end early."""

import copy
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from certified_claims import RADII, altered, evidence_of, same_state, state_of
from scipy.stats import norm

from hf_watermark import (
    CertifiedVerifier,
    WatermarkKey,
)
from hf_watermark.keys import SubKey
from hf_watermark.methods.certified import certificate as certificates
from hf_watermark.methods.certified import certify
from hf_watermark.methods.certified.certificate import owner_alpha
from hf_watermark.methods.certified.noise import (
    NoisyNets,
    noise_seeds,
)
from hf_watermark.methods.certified.verifier import smoothed_log2_tail, smoothed_median
from hf_watermark.publishing.parts import CertificateClaim
from hf_watermark.statistics import (
    log2_binomial_tail,
    order_statistic_index,
    quantile_test,
    smallest_certifiable_quantile,
)


# --- The certificate --------------------------------------------------------------------------------------------------


def test_the_certificate_is_the_order_statistics_of_the_plain_loop(marked, stretched, counts):
    certificate = certify(stretched, marked.model, RADII, confidence=0.99)
    [curve] = certificate.curves.values()
    alpha = (1 - 0.99 - 0.005) / len(RADII)
    for row in curve:
        place = order_statistic_index(len(counts), norm.cdf(-row.radius), alpha)
        assert row.matches == np.sort(counts)[place - 1] and row.accuracy == row.matches / 80
        assert row.distance == pytest.approx(row.radius * 0.25) and row.draws == len(counts) == 200
        bits = smoothed_log2_tail(row.matches, 80, 9, 30) + 1
        assert row.log2_p == round(min(0.0, bits), 2) and row.certified is (bits <= -64)
    bounds = [row.matches for row in curve]
    assert [row.radius for row in curve] == sorted(RADII)
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > bounds[-1]
    assert certificate.radius == max([row.radius for row in curve if row.certified], default=0)
    assert certificate.accuracy_at(1.0) == curve[2].accuracy
    with pytest.raises(ValueError, match="`radius` is 0.3: this certificate has none of that size"):
        certificate.accuracy_at(0.3)


def test_the_trained_noise_level_is_certified(marked, claim):
    certificate = marked.trainer.certify(RADII)
    assert certificate.radius == 1.5 and certificate.accuracy_at(1.0) > 0.9
    assert certificate == certify(claim, marked.model, RADII)
    assert 0.01 < certificate.relative_sigma < 1
    document = json.loads(json.dumps(certificate.to_dict()))
    assert document["certified"] and document["radius"] == 1.5 and document["curves"]["0"][0]["radius"] == 0.25
    assert document["moves"] == "parameters and BatchNorm statistics" and len(document["limits"]) == 3
    published = CertificateClaim.of(document)  # what goes into the statement and the card
    assert published.radius == "1.5" and [float(point.radius) for point in published.curve] == list(RADII)
    assert all(point.accuracy_bp <= 1e4 * certificate.accuracy_at(float(point.radius)) for point in published.curve)


def test_noisy_nets_may_run_in_bfloat16(marked, claim):
    low = altered(claim, precision="bfloat16")
    certificate = certify(low, marked.model, (0.25, 0.5), draws=40)
    assert certificate.radius == 0.5 and certificate == certify(low, marked.model, (0.25, 0.5), draws=40)
    assert evidence_of(low, marked.model).details["smoothed_matches"] > 70


def test_two_verifiers_get_the_same_numbers_and_leave_the_weights(marked, stretched):
    before = state_of(marked.model)
    first = certify(stretched, marked.model, RADII)
    [loaded] = WatermarkKey.load(marked.key_folder, "a long enough passphrase").claims()
    second = certify(altered(loaded, sigma=0.25), copy.deepcopy(marked.model), RADII)
    assert first == second
    readings = [evidence_of(key_claim, marked.model).details for key_claim in (stretched, altered(loaded, sigma=0.25))]
    assert readings[0] == readings[1]
    assert same_state(state_of(marked.model), before) and not marked.model.training


def test_owner_and_suspect_draw_different_noise(marked, claim, monkeypatch):
    used = []

    class Watching(NoisyNets):
        def answers(self, seeds, images):
            used.append(list(seeds))
            return super().answers(used[-1], images)

    monkeypatch.setattr(certificates, "NoisyNets", Watching)
    monkeypatch.setattr("hf_watermark.methods.certified.verifier.NoisyNets", Watching)
    certify(claim, marked.model, (0.5,), draws=40)
    evidence_of(claim, marked.model)
    owners, suspects = used
    assert len(set(owners)) == 40 and len(set(suspects)) == 30 and not set(owners) & set(suspects)
    assert owners != noise_seeds(SubKey(0, 0, bytes(32)), 70)[30:]


def test_workers_and_order_do_not_change_answers(marked, claim):
    verifier, [subkey] = CertifiedVerifier(claim), claim.subkeys
    net = verifier.folded(marked.model)
    weights, images, seeds = net.coordinates(marked.model), verifier.triggers(subkey)[:8], noise_seeds(subkey, 12)
    threads = torch.get_num_threads()
    alone, three = (
        list(NoisyNets(net, weights, verifier.spread(), workers=workers).answers(seeds, images)) for workers in (1, 3)
    )
    assert np.array_equal(alone, three) and torch.get_num_threads() == threads
    backwards = list(NoisyNets(net, weights, verifier.spread(), workers=1).answers(seeds[::-1], images))
    assert np.array_equal(alone, backwards[::-1])


def test_certifying_with_two_threads_leaves_other_threads_alone(marked, claim):
    def threads_of_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    torch.set_num_threads(2)
    try:
        certify(claim, marked.model, (0.25,), draws=15)
        assert torch.get_num_threads() == threads_of_a_new_thread() == 2
    finally:
        torch.set_num_threads(1)


def test_owner_s_and_suspect_s_sampling_errors_are_both_in_the_confidence():
    """One weight w, one trigger, matched where w + noise > 0: the certificate and the smoothed median of a moved net are known."""
    generator, repeats, radius = np.random.default_rng(0), 10_000, 1.0
    alpha = owner_alpha(0.99, (radius,), 200)
    place = order_statistic_index(200, float(norm.cdf(-radius)), alpha)
    # An owner just outside the radius that could be certified honestly.
    owners = np.sort(generator.standard_normal((repeats, 200)) > -(radius - 1e-3), axis=1)
    wrong = int(owners[:, place - 1].sum())
    assert log2_binomial_tail(wrong, repeats, alpha) > -20
    # A suspect that was moved to the very border: half of its draws match.
    suspects = generator.standard_normal((repeats, 30)) > 0
    lost = sum(smoothed_median(row.astype(int)) == 0 for row in suspects)
    assert log2_binomial_tail(int(lost), repeats, 0.005) > -20


# --- Early stopping ---------------------------------------------------------------------------------------------------


def test_early_answers_are_those_of_the_sequential_test(marked, stretched, counts):
    alpha = owner_alpha(0.99, RADII, 200)
    for share in (0.3, 0.6, 0.8, 1.0):
        certificate = certify(stretched, marked.model, RADII, at_least=share)
        under = (counts < math.ceil(share * 80 - 1e-9)).cumsum()
        for row in certificate.curves[0]:
            test = quantile_test(200, float(norm.cdf(-row.radius)), alpha)
            answers = [test.decide(seen, int(under[seen - 1])) for seen in range(1, 201)]
            first = next(place for place, answer in enumerate(answers) if answer is not None)
            assert (row.matches is not None) is answers[first] and row.draws == first + 1
            assert row.matches in (None, math.ceil(share * 80 - 1e-9))


def test_clear_answers_come_early_and_agree_with_the_full_ones(marked, claim):
    full = certify(claim, marked.model, RADII)
    assert full.accuracy_at(1.5) >= 0.9
    early = certify(claim, marked.model, RADII, at_least=0.9)
    assert early.radius == full.radius and all(row.draws < 200 for row in early.curves[0])
    assert early.curves[0][1].draws * 3 <= 200  # half a sigma
    none = certify(altered(claim, sigma=3.0), marked.model, (0.25, 0.5), at_least=0.9)
    assert not none.certified and all(row.draws * 3 <= 200 for row in none.curves[0])


def test_early_answers_refuse_radii_that_they_could_never_accept(marked, claim):
    # The last look has only four fifths of alpha, so its largest radius is a little smaller.
    largest = -norm.ppf(smallest_certifiable_quantile(200, owner_alpha(0.99, (1.0,), 200)))
    radius = round(float(largest) - 0.003, 4)
    assert certify(claim, marked.model, (radius,)).curves[0][0].matches is not None
    with pytest.raises(ValueError, match="is beyond what 200 draws can certify"):
        certify(claim, marked.model, (radius,), at_least=0.1)
