"""Certified triggers: what a certificate promises, what breaks it, and what is never certified."""

import copy
import dataclasses
import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTImageProcessor,
    pipeline,
)

from hf_watermark import (
    CertifiedConfig,
    CertifiedTrainer,
    CertifiedVerifier,
    FunctionCoupledTrainer,
    InvalidInput,
    Owner,
    SmoothedModelForImageClassification,
    Suspect,
    Verdict,
    WatermarkKey,
    stack_trainers,
    wrap_timm,
)
from hf_watermark.attacks import FlipBatchNormSigns, ReestimateBatchNorm
from hf_watermark.backbones import FoldedNet
from hf_watermark.keys import Claim, SubKey
from hf_watermark.methods.certified import CertifiedEmbedding, SmoothedConfig, certify, embedding, released
from hf_watermark.methods.certified import certificate as certificates
from hf_watermark.methods.certified.certificate import owner_alpha
from hf_watermark.methods.certified.noise import (
    NoisyNets,
    add_noise,
    clean_weights,
    noise_scales,
    noise_seeds,
    weighted_distance,
)
from hf_watermark.methods.certified.verifier import Answers, smoothed_log2_tail, smoothed_median
from hf_watermark.methods.function_coupled import FunctionCoupledEmbedding
from hf_watermark.publishing.parts import CertificateClaim
from hf_watermark.statistics import (
    draws_to_certify,
    log2_binomial_tail,
    order_statistic_index,
    quantile_test,
    smallest_certifiable_quantile,
)
from hf_watermark.training.embedding import Moment


RADII = (0.25, 0.5, 1.0, 1.5)


def altered(claim: Claim, layout: dict | None = None, **config) -> Claim:
    """The same sub-keys under another config or layout: how a stretched noise level or other coordinates are asked for."""
    old = claim.assignment
    new = dataclasses.replace(old, config=old.config | config, layout=old.layout | (layout or {}))
    return dataclasses.replace(claim, assignment=new)


def unfolded(claim: Claim, model: nn.Module) -> Claim:
    """A claim whose certificate speaks of the parameters alone."""
    net = FoldedNet(model, claim.pool["certified.images"][:2].float(), fold=False)
    return altered(claim, {"scales": noise_scales(net.coordinates(model), "relative")}, moves="parameters")


def evidence_of(claim: Claim, suspect):
    [evidence] = CertifiedVerifier(claim).verify(Suspect.open(suspect), decoys=1)
    return evidence


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def marked(marked_by):
    return marked_by("certified")


@pytest.fixture(scope="module")
def claim(marked) -> Claim:
    [claim] = marked.key.claims()
    return claim


@pytest.fixture(scope="module")
def stretched(claim) -> Claim:
    """More noise than the model was trained for, so that the curve falls."""
    return altered(claim, sigma=0.25)


@pytest.fixture(scope="module")
def counts(marked, stretched) -> np.ndarray:
    """Matches in each of the owner's noise draws, by the plain loop: fresh noise in the weights' memory order, add, forward."""
    verifier, [subkey] = CertifiedVerifier(stretched), stretched.subkeys
    net = verifier.folded(marked.model)
    weights, images, labels = clean_weights(net, marked.model), verifier.triggers(subkey), verifier.labels(subkey)
    sizes, matches = [weight.numel() for weight in weights.values()], []
    for seed in noise_seeds(subkey, verifier.config.draws, skip=verifier.config.suspect_draws):
        drawn = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed)).split(sizes)
        noisy = {
            name: weight + verifier.spread()[name] * noise.clone().as_strided(weight.shape, weight.stride())
            for (name, weight), noise in zip(weights.items(), drawn, strict=True)
        }
        with torch.no_grad():
            matches.append((net(noisy, images).argmax(dim=1).numpy() == labels).sum())
    return np.array(matches)


@pytest.fixture
def make_trainer(make_resnet, arguments, patterned, owner, small_configs):
    def make(trainer_class=CertifiedTrainer, data=patterned, run=None, callbacks=None, **changes):
        config = dataclasses.replace(small_configs["certified"], **changes)
        args = arguments(**{"max_steps": 3, "per_device_train_batch_size": 16} | (run or {}))
        model = make_resnet()
        return trainer_class(
            model=model, args=args, train_dataset=data, watermark=config, owner=owner, callbacks=callbacks
        )

    return make


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


# --- No counterexample ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Small:
    """A smaller marked model at a noise level where its curve falls, and what is certified at 1.0 sigma."""

    verifier: CertifiedVerifier
    net: FoldedNet
    weights: dict[str, torch.Tensor]
    images: torch.Tensor
    labels: torch.Tensor
    bound: int

    def smoothed_matches(self, weights) -> int:
        """What the smoothed test of a suspect with these folded weights says."""
        nets = NoisyNets(self.net, weights, self.verifier.spread(), workers=1)
        seeds = noise_seeds(self.verifier.claim.subkeys[0], self.verifier.config.suspect_draws)
        answers = np.stack(list(nets.answers(seeds, self.images)))
        return smoothed_median((answers == self.labels.numpy()).sum(axis=1))

    def moved(self, direction, radius: float):
        """Weights at `radius` sigma in the certificate's norm; `direction` is in units of the scales."""
        scales, most = self.verifier.scales, radius * self.verifier.config.sigma
        step = most / length_of(direction) * (1 - 2e-5)  # room for rounding
        other = {name: self.weights[name] + step * scales[name] * tensor for name, tensor in direction.items()}
        assert weighted_distance(self.weights, other, scales) <= most
        return other

    def trigger_loss(self, weights, seeds) -> torch.Tensor:
        """Mean cross-entropy of the triggers over some noise draws."""
        logits = [self.net(add_noise(weights, self.verifier.spread(), seed), self.images) for seed in seeds]
        return torch.stack([nn.functional.cross_entropy(answer, self.labels) for answer in logits]).mean()

    def climb(self, radius: float, seed: int, steps: int = 4, draws: int = 3):
        """Projected ascent on the smoothed trigger loss from a random start: the most harmful direction that gradients find."""
        generator = torch.Generator().manual_seed(seed)
        direction = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in self.weights.items()}
        direction = {name: tensor / length_of(direction) for name, tensor in direction.items()}
        for step in range(steps):
            here = {name: tensor.requires_grad_() for name, tensor in self.moved(direction, radius).items()}
            first = 1000 * (1 + seed) + draws * step
            loss = self.trigger_loss(here, range(first, first + draws))
            gradients = zip(here, torch.autograd.grad(loss, list(here.values())), strict=True)
            rise = {name: gradient * self.verifier.scales[name] for name, gradient in gradients}
            direction = {name: direction[name] + rise[name] / length_of(rise) for name in direction}
        return {name: tensor.detach() for name, tensor in self.moved(direction, radius).items()}


def length_of(tensors) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors.values()) ** 0.5


@pytest.fixture(scope="module")
def small(marked, tmp_path_factory) -> Small:
    torch.manual_seed(0)
    config = ResNetConfig(**marked.model.config.to_dict() | {"embedding_size": 8, "hidden_sizes": [8, 16]})
    args = TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("small")),
        **{"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "max_steps": 150},
        **{"per_device_train_batch_size": 20, "learning_rate": 3e-3, "lr_scheduler_type": "cosine"},
    )
    halve = nn.AvgPool2d(2)
    data = [item | {"pixel_values": halve(item["pixel_values"])} for item in marked.trainer.train_dataset]
    watermark = CertifiedConfig(triggers=40, sigma=0.1, strength=1.0, trigger_ratio=2.0, draws=400, suspect_draws=20)
    trainer = CertifiedTrainer(
        model=ResNetForImageClassification(config), args=args, train_dataset=data, watermark=watermark, owner=Owner.create()
    )  # fmt: skip
    trainer.train()
    model = trainer.model.eval()
    claim = altered(trainer.key.claims()[0], sigma=0.3)
    verifier, [subkey] = CertifiedVerifier(claim), claim.subkeys
    net = verifier.folded(model)
    weights = {name: tensor.detach() for name, tensor in net.coordinates(model).items()}
    [[row]] = certify(claim, model, (1.0,)).curves.values()
    images, labels = verifier.triggers(subkey), torch.from_numpy(verifier.labels(subkey))
    return Small(verifier, net, weights, images, labels, row.matches)


def test_no_counterexample_among_random_perturbations(small):
    generator = torch.Generator().manual_seed(0)
    assert 15 <= small.bound < 40
    for place in range(200):
        radius = 1.0 if place % 2 else 0.1 + 0.9 * float(torch.rand((), generator=generator))
        direction = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in small.weights.items()}
        assert small.smoothed_matches(small.moved(direction, radius)) >= small.bound


def test_no_counterexample_among_gradient_chosen_perturbations(small):
    attacks = [small.climb(1.0, seed) for seed in range(50)]
    assert min(small.smoothed_matches(attack) for attack in attacks) >= small.bound
    with torch.no_grad():  # they do harm
        calm, *losses = (small.trigger_loss(net, range(10)).item() for net in (small.weights, *attacks))
    assert np.mean(losses) > calm


def test_outside_the_ball_there_are_counterexamples(small):
    assert all(small.smoothed_matches(small.climb(10.0, seed)) < small.bound for seed in range(3))


def test_a_suspect_inside_the_ball_passes_the_verifier(small):
    suspect = small.net.holding(small.climb(1.0, seed=7))
    assert evidence_of(small.verifier.claim, suspect).details["smoothed_matches"] >= small.bound


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


def shifted(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean += 0.05 * layer.running_var.sqrt()
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


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radii": ()}, r"`radii` is \[\]: give different radii between 0 and 10"),
        ({"radii": (0.5, 0.5)}, "give different radii"),
        ({"radii": (0.0,)}, "between 0 and 10"),
        ({"radii": (-1.0,)}, "between 0 and 10"),
        ({"radii": (math.nan,)}, "between 0 and 10"),
        ({"radii": np.array([])}, "`radii` is"),
        ({"confidence": 0.0}, "`confidence` is 0.0: choose a number between 0 and 0.995"),
        ({"confidence": 0.995}, "`confidence` is 0.995"),
        ({"confidence": 1.0}, "`confidence` is 1.0"),
        ({"confidence": math.nan}, "`confidence` is nan"),
        ({"draws": 0}, "draws"),
        ({"draws": -5}, "draws"),
        ({"at_least": 0.0}, r"`at_least` is 0.0: choose an accuracy in \(0, 1\]"),
        ({"at_least": 1.01}, "`at_least` is 1.01"),
    ],
)
def test_questions_that_make_no_sense(marked, claim, changes, message):
    with pytest.raises(ValueError, match=message):
        certify(claim, marked.model, **{"radii": (0.5,)} | changes)


def test_radii_may_be_an_array(marked, claim):
    assert certify(claim, marked.model, np.array([0.5, 1.0]), draws=60) == certify(
        claim, marked.model, (0.5, 1.0), draws=60
    )


def test_too_large_a_radius_says_how_many_draws_it_takes(marked, claim):
    alpha = 0.005 / 2
    needed = draws_to_certify(float(norm.cdf(-2.0)), alpha)
    with pytest.raises(ValueError, match=rf"radius 2.0 is beyond what 200 draws can certify .* use draws={needed}$"):
        certify(claim, marked.model, (1.0, 2.0))
    assert owner_alpha(0.99, (1.0, 2.0), needed) == pytest.approx(alpha)
    with pytest.raises(ValueError, match=f"beyond what {needed - 1} draws"):
        owner_alpha(0.99, (1.0, 2.0), needed - 1)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_not_certified(marked, claim, kind):
    with pytest.raises(InvalidInput, match="parameter noise needs float32 weights"):
        certify(claim, copy.deepcopy(marked.model).to(kind), (0.5,))
    evidence = evidence_of(claim, copy.deepcopy(marked.model).to(kind))
    assert evidence.details["smoothed_matches"] > 70  # a suspect is read all the same


def test_double_precision_weights_are_certified_or_refused(marked, claim):
    double = copy.deepcopy(marked.model).double()
    try:
        assert certify(claim, double, (0.5,), draws=40).certified
    except InvalidInput as error:
        assert "float64" in str(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "`sigma` is 0.0: choose a positive number"),
        ({"sigma": -0.1}, "`sigma` is -0.1"),
        ({"sigma": math.inf}, "`sigma` is inf"),
        ({"sigma": math.nan}, "`sigma` is nan"),
        ({"family": "text"}, "`family` is 'text': choose one of embedded, noise, unrelated"),
        ({"noise": "loud"}, "`noise` is 'loud'"),
        ({"moves": "nothing"}, "`moves` is 'nothing'"),
        ({"labels": "two"}, "`labels` is 'two'"),
        ({"schedule": "later"}, "`schedule` is 'later'"),
        ({"triggers": 0}, "`triggers` is 0"),
        ({"overshoot": 0.5}, "`overshoot` is 0.5"),
        ({"warmup": 1.5}, "`warmup` is 1.5"),
        ({"strength": 0.0}, "`strength` is 0.0"),
        ({"trigger_ratio": 0.0}, "`trigger_ratio` is 0.0"),
        ({"draws": 9}, "`draws` is 9"),
        ({"suspect_draws": 19}, "`suspect_draws` is 19"),
        ({"preset": "paper"}, "preset 'paper' has one label for all triggers"),
        ({"preset": "mine"}, "`preset` is 'mine'"),
        ({"precision": "float16"}, "`precision` is 'float16': choose one of float32, bfloat16"),
    ],
)
def test_strange_configs_are_refused(change, message):
    with pytest.raises((InvalidInput, ValueError), match=message):
        CertifiedConfig.from_dict(CertifiedConfig().to_dict() | change)


def test_the_paper_s_recipe():
    paper = CertifiedConfig.paper()
    assert (paper.sigma, paper.noise, paper.labels, paper.schedule) == (1.0, "isotropic", "one", "released")
    assert CertifiedConfig.from_dict(paper.to_dict()) == paper


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"scales": {}}, "`scales` must map tensor names to positive numbers"),
        ({"scales": {"a": 0.0}}, "`scales` must map"),
        ({"scales": {"a": math.nan}}, "`scales` must map"),
        ({"scales": [1.0]}, "`scales` must map"),
        ({"classes": 1}, "1 classes, but the owner's model has 10 class names"),
        ({"classes": "ten"}, "ten classes, but the owner's model has 10 class names"),
        ({"classes": 2}, "2 classes, but the owner's model has 10 class names"),
    ],
)
def test_strange_layouts_are_refused(claim, layout, message):
    with pytest.raises(InvalidInput, match=message):
        CertifiedVerifier(altered(claim, layout))


# --- Training ---------------------------------------------------------------------------------------------------------


def test_a_noisy_pass_reaches_every_weight_and_no_buffer(make_trainer):
    trainer = make_trainer(run={"max_steps": 10})
    trainer.state.max_steps, trainer.state.global_step = 10, 5
    model = trainer.model.train()
    before = state_of(model)
    trainer.embedding(CertifiedEmbedding)._noisy_loss(32, largest=1.2).backward()
    assert same_state(before, state_of(model))
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_each_step_and_process_draws_its_own_noise(make_trainer, monkeypatch):
    trainer, used = make_trainer(run={"gradient_accumulation_steps": 2}), []
    original = Moment.seed

    def watching(self, secret, purpose, process=0):
        used.append(original(self, secret, purpose, process))
        return used[-1]

    monkeypatch.setattr(Moment, "seed", watching)
    trainer.train()
    assert len(used) == len(set(used)) == 6 and trainer._micro_step == 0  # three steps of two passes
    assert len({original(trainer.embeddings[0].moment, b"secret", b"purpose", process) for process in range(4)}) == 4
    assert all(0 <= seed < 2**63 for seed in used)


def test_a_resumed_run_ends_with_the_same_weights(make_trainer, make_resnet, patterned, arguments):
    run = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    whole = make_trainer(run=run)
    whole.train()
    resumed = continued(whole, make_resnet, patterned, arguments(**run | {"per_device_train_batch_size": 16}))
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert same_state(state_of(whole.model), state_of(resumed.model))


def continued(whole, make_resnet, data, args) -> CertifiedTrainer:
    config = whole.embedding(CertifiedEmbedding).config
    return CertifiedTrainer(model=make_resnet(), args=args, train_dataset=data, watermark=config, key=whole.key)


@pytest.fixture
def short_release(monkeypatch):
    monkeypatch.setattr(released, "DRAWS", 2)
    monkeypatch.setattr(released, "LEVELS", 2)


def test_the_released_schedule_steps_the_optimizer_before_each_epoch(make_trainer, short_release, monkeypatch):
    levels, states = [], []
    monkeypatch.setattr(
        embedding,
        "add_noise",
        lambda w, spread, seed: levels.append(max(spread.values())) or add_noise(w, spread, seed),
    )

    class Look(TrainerCallback):
        def on_epoch_begin(self, args, state, control, model=None, **kwargs):
            states.append(state_of(model))

    run = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 80}
    trainer = make_trainer(run=run, callbacks=[Look()], schedule="released")
    trainer.add_callback(Look())  # before and after the noisy steps
    trainer.train()
    first, first_after, second, second_after = states
    assert same_state(first, first_after)  # the warm-up epoch
    changed = {name for name in second if not torch.equal(second[name], second_after[name])}
    assert changed == {name for name, _ in trainer.model.named_parameters()}
    top = max(trainer.embedding(CertifiedEmbedding).spread.values())
    assert levels == pytest.approx([top * level / 2 for _ in range(2) for level in (0, 0, 1, 1, 2, 2)])  # 80 triggers


def test_a_resumed_released_run_ends_with_the_same_weights(
    make_trainer, make_resnet, patterned, arguments, short_release
):
    run = {"max_steps": -1, "num_train_epochs": 3, "per_device_train_batch_size": 80, "save_strategy": "epoch"}
    whole = make_trainer(run=run, schedule="released")
    whole.train()
    resumed = continued(whole, make_resnet, patterned, arguments(**run))
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{2 * whole.state.max_steps // 3}")
    assert same_state(state_of(whole.model), state_of(resumed.model))


@pytest.mark.parametrize("moves", ["all", "parameters"])
def test_noisy_passes_see_the_model_as_it_is_now(make_trainer, moves):
    trainer = make_trainer(run={"max_steps": 6}, moves=moves)
    trainer.train()
    model, images = trainer.model.eval(), trainer.embedding(CertifiedEmbedding).triggers[:8]
    net = trainer.embedding(CertifiedEmbedding).net
    with torch.no_grad():
        seen, wanted = net(net.coordinates(model), images), model(images).logits
    torch.testing.assert_close(seen, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["noise", "embedded", "unrelated"])
def test_subkeys_have_disjoint_triggers_of_all_classes(make_trainer, patterned, family):
    trainer = make_trainer(family=family, subkeys=2, triggers=40)
    [claim] = trainer.key.claims()
    verifier = CertifiedVerifier(claim)
    shares = [verifier._pool(subkey) for subkey in claim.subkeys]
    pictures = [{image.numpy().tobytes() for image in share["images"]} for share in shares]
    assert [len(share) for share in pictures] == [40, 40] and not pictures[0] & pictures[1]
    drawn = [verifier.labels(subkey) for subkey in claim.subkeys]
    assert not np.array_equal(*drawn)
    for subkey, labels in zip(claim.subkeys, drawn, strict=True):
        triggers, (low, high) = verifier.triggers(subkey), claim.pool["certified.range"].float()
        assert triggers.shape == (40, 1, 16, 16)
        assert bool((triggers >= low.min()).all()) and bool((triggers <= high.max()).all())
        if family == "unrelated":
            assert set(verifier.sources(subkey)) == {-1}
        else:
            assert set(verifier.sources(subkey)) == set(range(10)) and (labels != verifier.sources(subkey)).all()


@pytest.mark.parametrize("family", ["noise", "unrelated"])
def test_pool_images_are_never_trained_on(make_trainer, patterned, family):
    trainer = make_trainer(family=family)
    rows = trainer.key.pool["certified.rows"].tolist()
    assert len(rows) == (0 if family == "unrelated" else 80)
    kept = {item["pixel_values"].numpy().tobytes() for item in trainer.train_dataset}
    assert len(kept) == len(patterned) - len(rows)
    assert not kept & {patterned[row]["pixel_values"].numpy().tobytes() for row in rows}


@pytest.mark.parametrize("certified_first", [True, False])
def test_stacked_pools_are_never_trained_on(make_resnet, arguments, patterned, owner, small_configs, certified_first):
    order = [CertifiedTrainer, FunctionCoupledTrainer][:: 1 if certified_first else -1]
    trainer = stack_trainers(*order)(
        model=make_resnet(),
        args=arguments(),
        train_dataset=patterned,
        watermark=[small_configs["certified"], small_configs["function_coupled"]],
        owner=owner,
    )
    pool = trainer.key.pool
    rows = {row for method in small_configs if f"{method}.rows" in pool for row in pool[f"{method}.rows"].tolist()}
    kept = {item["pixel_values"].numpy().tobytes() for item in trainer.train_dataset}
    assert len(kept) == len(patterned) - len(rows)
    assert not kept & {patterned[row]["pixel_values"].numpy().tobytes() for row in rows}
    # Fused images are made from spare ones where a batch lacks a class; those are trained on, too.
    spare = {image.numpy().tobytes() for image in trainer.embedding(FunctionCoupledEmbedding)._spare.flatten(0, 1)}
    assert not spare & {patterned[row]["pixel_values"].numpy().tobytes() for row in rows}


class Augmented(torch.utils.data.Dataset):
    """Random augmentation, which draws from the global generator whenever an image is looked at."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        item = self.items[place]
        return item | {"pixel_values": item["pixel_values"] + 0.01 * torch.randn(1, 16, 16)}


def test_making_triggers_leaves_the_random_state_to_training(make_trainer, make_resnet, arguments, patterned):
    # Else a marked model and its unmarked twin would see other batches.
    make_trainer(data=Augmented(patterned), run={"max_steps": 3})
    marked_state = torch.get_rng_state()
    model = make_resnet()
    Trainer(model=model, args=arguments(), train_dataset=Augmented(patterned))
    assert torch.equal(torch.get_rng_state(), marked_state)


def test_a_key_of_other_images_is_refused(make_trainer, make_resnet, arguments, patterned):
    whole = make_trainer()
    larger = [item | {"pixel_values": item["pixel_values"].repeat(1, 2, 2)} for item in patterned]
    with pytest.raises(InvalidInput, match="triggers are 1 x 16 x 16, the training images are 1 x 32 x 32"):
        continued(whole, make_resnet, larger, arguments())
    with pytest.raises(InvalidInput, match="made for 10 classes, this model has 7; make a fresh key"):
        continued(whole, lambda: make_resnet(num_labels=7), patterned, arguments())
    with pytest.raises(InvalidInput, match="not the owner's architecture"):
        continued(whole, lambda: make_resnet(depths=[2, 1]), patterned, arguments())


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({"triggers": 20}, 10, "20 triggers over 10 classes can give at most 63 bits, a claim needs 64"),
        ({"subkeys": 16}, 10, "lacks .* images that triggers need"),
        ({}, 2, "triggers over 2 classes"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    make_resnet, arguments, patterned, owner, small_configs, changes, labels, message
):
    config = dataclasses.replace(small_configs["certified"], **changes)
    data = [item | {"labels": item["labels"] % labels} for item in patterned]
    with pytest.raises(ValueError, match=message):
        CertifiedTrainer(
            model=make_resnet(num_labels=labels), args=arguments(), train_dataset=data, watermark=config, owner=owner
        )


def test_two_classes_have_room_where_no_label_is_excluded(make_resnet, arguments, patterned, owner):
    # Unrelated pictures show neither class, so every label is one bit: 100 triggers are 100 bits.
    data = [item | {"labels": item["labels"] % 2} for item in patterned]
    config = CertifiedConfig(family="unrelated", triggers=100)
    CertifiedTrainer(
        model=make_resnet(num_labels=2), args=arguments(), train_dataset=data, watermark=config, owner=owner
    )


# --- The smoothed model -----------------------------------------------------------------------------------------------


@pytest.fixture
def smoothed(marked):
    return SmoothedModelForImageClassification.smooth(copy.deepcopy(marked.model), sigma=0.2, draws=4, noise_seed=5)


@pytest.fixture
def pictures(patterned) -> torch.Tensor:
    return torch.stack([item["pixel_values"] for item in patterned[:6]])


@torch.no_grad()
def test_the_smoothed_model_is_the_mean_of_noisy_models(marked, pictures):
    model = marked.model
    smoothed = SmoothedModelForImageClassification.smooth(
        copy.deepcopy(model), sigma=0.2, noise="isotropic", draws=4, noise_seed=5, moves="parameters"
    )
    mean = torch.zeros(6, 10)
    for seed in range(5, 9):
        noisy = copy.deepcopy(model)
        sizes = [parameter.numel() for parameter in noisy.parameters()]
        drawn = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed)).split(sizes)
        for parameter, noise in zip(noisy.parameters(), drawn, strict=True):
            parameter.data += 0.2 * noise.view_as(parameter)
        mean += noisy(pictures).logits.softmax(dim=1) / 4
    torch.testing.assert_close(smoothed(pictures).logits.softmax(dim=1), mean, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_little_noise_changes_little_and_more_noise_more(marked, pictures):
    wanted = marked.model(pictures).logits.softmax(dim=1)
    distances = []
    for sigma in (1e-6, 0.1, 1.0):
        smoothed = SmoothedModelForImageClassification.smooth(copy.deepcopy(marked.model), sigma=sigma, draws=4)
        distances.append(float((smoothed(pictures).logits.softmax(dim=1) - wanted).abs().max()))
    assert distances[0] < 1e-3 and distances == sorted(distances) and distances[-1] > 0.1


@torch.no_grad()
def test_the_smoothed_model_saves_and_loads(smoothed, pictures, tmp_path):
    before = state_of(smoothed)
    answers = smoothed(pictures).logits
    assert same_state(before, state_of(smoothed)) and all(name.startswith("backbone.") for name in before)
    assert torch.equal(answers, smoothed(pictures).logits)
    smoothed.save_pretrained(tmp_path)
    for loader in (SmoothedModelForImageClassification, AutoModelForImageClassification):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is SmoothedModelForImageClassification and not loaded.training
        assert torch.equal(loaded(pictures).logits, answers)


def test_a_smoothed_timm_model_saves_and_loads(tmp_path):
    import timm

    fields = {"channels": (8, 8, 8, 8), "stem_width": 4}
    model = wrap_timm(timm.create_model("resnet10t", num_classes=4, **fields), "resnet10t", 4, **fields)
    smoothed = SmoothedModelForImageClassification.smooth(model, sigma=0.1, draws=2)
    smoothed.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        loaded = SmoothedModelForImageClassification.from_pretrained(tmp_path)
        assert torch.equal(loaded(images).logits, smoothed(images).logits)


def test_the_smoothed_model_works_in_a_pipeline(make_resnet):
    from PIL import Image

    names = {number: f"name {number}" for number in range(10)}
    model = make_resnet(num_channels=3, id2label=names, label2id={name: number for number, name in names.items()})
    smoothed = SmoothedModelForImageClassification.smooth(model, sigma=0.1, draws=3)
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))
    answers = pipeline("image-classification", model=smoothed, image_processor=processor, device="cpu")(image, top_k=3)
    with torch.no_grad():
        wanted = smoothed(**processor(image, return_tensors="pt")).logits.softmax(dim=1)[0]
    values, places = wanted.topk(3)
    assert [answer["label"] for answer in answers] == [names[place] for place in places.tolist()]
    assert [answer["score"] for answer in answers] == pytest.approx(values.tolist(), abs=1e-6)


def test_training_mode_passes_through(smoothed, pictures):
    labels = torch.arange(6)
    twin = copy.deepcopy(smoothed.backbone).train()
    output, wanted = smoothed.train()(pictures, labels=labels), twin(pictures, labels=labels)
    assert torch.equal(output.logits, wanted.logits) and torch.equal(output.loss, wanted.loss)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in smoothed.parameters())
    with torch.no_grad():
        evaluated = smoothed.eval()(pictures, labels=labels)
    assert evaluated.loss.item() == pytest.approx(
        float(nn.functional.cross_entropy(evaluated.logits, labels)), rel=1e-5
    )


@pytest.mark.parametrize("moves", ["all", "parameters"])
@torch.no_grad()
def test_a_smoothed_model_that_is_trained_on_answers_as_it_is_now(marked, pictures, moves):
    smoothed = SmoothedModelForImageClassification.smooth(
        copy.deepcopy(marked.model), sigma=1e-6, draws=1, moves=moves
    )
    smoothed(pictures)
    smoothed.backbone.load_state_dict(shifted(marked.model).state_dict())
    wanted = smoothed.backbone(pictures).logits.softmax(dim=1)
    torch.testing.assert_close(smoothed(pictures).logits.softmax(dim=1), wanted, rtol=1e-3, atol=1e-3)


def test_the_smoothed_config_names_no_folder(marked, tmp_path):
    marked.model.save_pretrained(tmp_path / "somebodys-home")
    model = ResNetForImageClassification.from_pretrained(tmp_path / "somebodys-home")
    SmoothedModelForImageClassification.smooth(model, draws=1).save_pretrained(tmp_path / "smoothed")
    assert "somebodys-home" not in (tmp_path / "smoothed" / "config.json").read_text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigma": 0.0}, "`sigma` is 0.0: choose a positive number"),
        ({"sigma": -1.0}, "`sigma` is -1.0"),
        ({"sigma": math.nan}, "`sigma` is nan"),
        ({"draws": 0}, "`draws` is 0: choose 1 to"),
    ],
)
def test_strange_smoothed_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SmoothedConfig(**fields)


def test_a_smoothed_model_needs_a_backbone():
    with pytest.raises(ValueError, match=r"backbone.s config names no known model type .*smooth\(model\)"):
        SmoothedModelForImageClassification(SmoothedConfig())
