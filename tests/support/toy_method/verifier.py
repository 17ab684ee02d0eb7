"""Reads the toy, with the mathematics that its trainer shares."""

import torch

from hf_watermark.evidence import Access, Check, Evidence, single
from hf_watermark.keys import Claim, SubKey
from hf_watermark.serialization import InvalidInput, Unreadable
from hf_watermark.statistics import log2_binomial_tail, log2_e_beta_mixture
from hf_watermark.suspects import Suspect
from hf_watermark.verification.verifier import Verifier, digest_of

from .config import ToySignsConfig


def sums(weight: torch.Tensor, subkey: SubKey, config: ToySignsConfig) -> torch.Tensor:
    """`[bits]`: of groups that the key draws from the weights of the sub-key's slot."""
    own = weight.flatten()[subkey.slot :: config.subkeys]
    places = subkey.stream("carrier").distinct(len(own), config.bits * config.group)
    return own[torch.from_numpy(places)].reshape(config.bits, config.group).sum(dim=1)


def signs(subkey: SubKey, config: ToySignsConfig) -> torch.Tensor:
    return torch.from_numpy(subkey.stream("bits").bits(config.bits)).float() * 2 - 1


class ToySignsVerifier(Verifier[torch.Tensor]):
    access = Access.WEIGHTS
    config_class = ToySignsConfig

    def __init__(self, claim: Claim):
        super().__init__(claim)
        if type(self.layout.get("tensor")) is not str:
            raise InvalidInput("layout: `tensor` is the name of the carrier")

    def observe(self, suspect: Suspect, subkey: SubKey, check: Check = Check()) -> torch.Tensor:
        name = self.layout["tensor"]
        if list(suspect.shapes.get(name, ())) != self.layout.get("shape"):
            raise Unreadable(f"the suspect has no tensor {name!r} of the owner's shape: another architecture")
        return sums(suspect.weights[name].float(), subkey, self.config)

    def score(self, observation: torch.Tensor, subkey: SubKey) -> Evidence:
        matches, trials = int((observation * signs(subkey, self.config) > 0).sum()), self.config.bits
        log2_e = log2_e_beta_mixture(matches, trials, 0.5)
        tail = log2_binomial_tail(matches, trials)
        return single(self.method, matches, trials, tail, "bits are drawn by the key", self.access, log2_e=log2_e)

    def fingerprint(self, observation: torch.Tensor) -> bytes:
        return digest_of(observation)
