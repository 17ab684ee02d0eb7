"""Embeds the toy."""

from typing import ClassVar

import torch

from hf_watermark.keys import Claim
from hf_watermark.training.trainer import Plan, WatermarkTrainer

from .config import ToySignsConfig
from .verifier import ToySignsVerifier, signs, sums


class ToySignsTrainer(WatermarkTrainer):
    method: ClassVar[str] = "toy_signs"
    config_class = ToySignsConfig
    verifier_class = ToySignsVerifier

    def plan(self, config: ToySignsConfig, secret: bytes) -> Plan:
        name, weight = max(self._bare_model().named_parameters(), key=lambda item: item[1].numel())
        return Plan({"tensor": name, "shape": list(weight.shape)}, config.subkeys)

    def attach(self, claim: Claim) -> None:
        self._claim = claim

    def watermark_loss(self) -> torch.Tensor:
        config, weight = (
            self.config_of(ToySignsConfig),
            self._bare_model().get_parameter(self._claim.assignment.layout["tensor"]),
        )
        short = [
            config.margin - signs(subkey, config) * sums(weight, subkey, config) for subkey in self._claim.subkeys
        ]
        return torch.cat(short).relu().sum()
