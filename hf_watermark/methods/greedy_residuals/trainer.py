"""Embeds greedy residuals while training."""

from typing import ClassVar

import torch

from ...backbones import Carrier, canonical_rows, describe, live_weights, locate
from ...keys import Claim
from ...trainer import Plan, WatermarkTrainer
from .config import GreedyResidualsConfig
from .residuals import (
    PAPER_GRID,
    fitting_subkeys,
    groups_per_slot,
    hinge,
    paper_residuals,
    place_groups,
    raw_weight,
    read_residuals,
    signs,
)
from .verifier import GreedyResidualsVerifier


class GreedyResidualsTrainer(WatermarkTrainer):
    """
    [`~transformers.Trainer`] that puts the key's bits into the signs of greedy residuals of key-drawn weight groups.

    Example:

    ```python
    >>> trainer = GreedyResidualsTrainer(
    ...     model=model, args=args, train_dataset=ds, watermark=GreedyResidualsConfig(), owner=owner
    ... )
    >>> trainer.train()
    >>> trainer.verify()
    >>> trainer.key.save("keys/my-model")
    ```
    """

    method: ClassVar[str] = "greedy_residuals"
    config_class = GreedyResidualsConfig
    verifier_class = GreedyResidualsVerifier

    def plan(self, config: GreedyResidualsConfig, secret: bytes) -> Plan:
        shapes = {name: tuple(weight.shape) for name, weight in live_weights(self._bare_model()).items()}
        carriers = describe(shapes, config.layers)
        if config.preset == "paper":
            _refuse_small(carriers[0].rows * carriers[0].columns >= PAPER_GRID[1], config, carriers, 1)
            subkeys = 1
        else:
            subkeys = config.subkeys or fitting_subkeys(carriers, config)
            _refuse_small(
                groups_per_slot(carriers, config.group_size, subkeys) >= config.bits, config, carriers, subkeys
            )
        return Plan({"carriers": [carrier.to_dict() for carrier in carriers]}, subkeys)

    def attach(self, claim: Claim) -> None:
        config = self.config_of(GreedyResidualsConfig)
        self._carriers = [Carrier(**item) for item in claim.assignment.layout["carriers"]]
        shapes = {name: tuple(weight.shape) for name, weight in live_weights(self._bare_model()).items()}
        found = [locate(carrier.role, shapes) for carrier in self._carriers]
        # Names are looked up once; the rest of the model is never touched in a step.
        self._carrier_names = {name for item in found for name in (item.weight, item.scale) if name is not None}
        self._subkeys = claim.subkeys
        self._signs = torch.cat([signs(subkey, config.bits) for subkey in claim.subkeys])
        if config.preset != "paper":
            self._groups = [
                place_groups(subkey, self._carriers, config.bits, config.group_size, len(claim.assignment.subkeys))
                for subkey in claim.subkeys
            ]

    def residuals(self) -> torch.Tensor:
        """Residuals of all sub-keys of the live model, `[sub-keys x bits]`."""
        config = self.config_of(GreedyResidualsConfig)
        model = self._bare_model()
        weights = {name: weight for name, weight in live_weights(model).items() if name in self._carrier_names}
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        if config.preset == "paper":
            weight = raw_weight(self._carriers[0], weights, shapes)
            return paper_residuals(weight, self._subkeys[0], config.kept_fraction)
        rows = {carrier.role: canonical_rows(carrier, weights, shapes) for carrier in self._carriers}
        return torch.cat([read_residuals(rows, groups, config.kept_fraction) for groups in self._groups])

    def watermark_loss(self) -> torch.Tensor | None:
        config = self.config_of(GreedyResidualsConfig)
        phi = self.residuals()
        penalty = config.strength * hinge(phi, self._signs.to(phi.device), config.margin)
        stacked = super().watermark_loss()
        return penalty if stacked is None else penalty + stacked


def _refuse_small(fits: bool, config: GreedyResidualsConfig, carriers: list[Carrier], subkeys: int) -> None:
    if fits:
        return
    capacity = sum(carrier.rows * (carrier.eligible // config.group_size) for carrier in carriers)
    raise ValueError(
        f"{subkeys} sub-key(s) x {config.bits} bits x {config.group_size} weights do not fit: the {len(carriers)} carrier tensors hold "
        f"{capacity} disjoint groups in all; lower `bits`, `subkeys` or `group_size`, or use a larger backbone"
    )
