"""No perturbation inside a certified radius takes the mark away."""

import dataclasses

import numpy as np
import pytest
import torch
from certified_claims import altered, evidence_of
from torch import nn
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    TrainingArguments,
)

from hf_watermark import (
    CertifiedConfig,
    CertifiedTrainer,
    CertifiedVerifier,
    Owner,
)
from hf_watermark.backbones import FoldedNet
from hf_watermark.methods.certified import certify
from hf_watermark.methods.certified.noise import (
    NoisyNets,
    add_noise,
    noise_seeds,
    weighted_distance,
)
from hf_watermark.methods.certified.verifier import smoothed_median


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
