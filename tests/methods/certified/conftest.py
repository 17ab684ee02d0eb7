"""One marked model and its claim, for all tests of certified watermarks."""

import dataclasses

import numpy as np
import pytest
import torch
from certified_claims import altered

from hf_watermark import (
    CertifiedTrainer,
    CertifiedVerifier,
)
from hf_watermark.keys import Claim
from hf_watermark.methods.certified.noise import (
    clean_weights,
    noise_seeds,
)


@pytest.fixture(scope="session")
def marked(marked_by):
    return marked_by("certified")


@pytest.fixture(scope="session")
def claim(marked) -> Claim:
    [claim] = marked.key.claims()
    return claim


@pytest.fixture(scope="session")
def stretched(claim) -> Claim:
    """More noise than the model was trained for, so that the curve falls."""
    return altered(claim, sigma=0.25)


@pytest.fixture(scope="session")
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
