"""Claims of certified watermarks under other configs, and states of models."""

import copy
import dataclasses

import torch
from torch import nn

from hf_watermark import (
    CertifiedVerifier,
    Suspect,
)
from hf_watermark.backbones import FoldedNet
from hf_watermark.keys import Claim
from hf_watermark.methods.certified.noise import (
    noise_scales,
)


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


def shifted(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean += 0.05 * layer.running_var.sqrt()
    return model
