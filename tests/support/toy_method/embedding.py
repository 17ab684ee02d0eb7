"""Puts the toy in."""

from typing import Any

import torch
from torch import nn

from hf_watermark.training.embedding import Embedding, Plan, TrainingData

from .verifier import ToySignsVerifier, signs, sums


class ToySignsEmbedding(Embedding):
    verifier_class = ToySignsVerifier

    @classmethod
    def plan(cls, model: nn.Module, data: TrainingData, config: Any, secret: bytes) -> Plan:
        name, weight = max(model.named_parameters(), key=lambda item: item[1].numel())
        return Plan({"tensor": name, "shape": list(weight.shape)}, config.subkeys)

    @property
    def carriers(self) -> dict[str, str]:
        # The trainers check before the first step that these train and are saved.
        name = self.claim.assignment.layout["tensor"]
        return {name: name}

    def penalty(self) -> torch.Tensor:
        weight = self.model.get_parameter(self.claim.assignment.layout["tensor"])
        short = [
            self.config.margin - signs(subkey, self.config) * sums(weight, subkey, self.config)
            for subkey in self.claim.subkeys
        ]
        return torch.cat(short).relu().sum()
