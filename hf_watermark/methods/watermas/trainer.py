"""Replaces carrier weights, keeps them, and trains the others so that the loss is sharp around them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...backbones import describe, read_carriers
from ...keys import Claim
from ...serialization import InvalidInput
from ...training.trainer import Plan, WatermarkTrainer
from .config import WaterMASConfig
from .replacing import draw_exchanges, find_substitutions, shapes_of
from .substitution import fitting_subkeys, payload_capacity, refuse_crowded
from .verifier import WaterMASVerifier


class WaterMASTrainer(WatermarkTrainer):
    """
    [`~transformers.Trainer`] that puts the key's bits into the signs of single, key-drawn weights. They are written again after
    every optimizer step, and the other weights w_u are trained on

        J = L(w) - lambda * (min(L(w + e), L(w) + 2 ln K) - L(w)),   e = radius * ascent direction of L, on the carriers only

    where K is the number of classes: whoever moves the carriers then loses accuracy.

    Example:

    ```python
    >>> trainer = WaterMASTrainer(
    ...     model=model, args=args, train_dataset=ds, watermark=WaterMASConfig(payload=b"licence 4711"), owner=owner
    ... )
    >>> trainer.train()
    >>> trainer.verify()
    ```
    """

    method: ClassVar[str] = "watermas"
    config_class = WaterMASConfig
    verifier_class = WaterMASVerifier

    def plan(self, config: WaterMASConfig, secret: bytes) -> Plan:
        carriers = describe(shapes_of(self._bare_model()), config.layers)
        subkeys = config.subkeys or fitting_subkeys(carriers, config)
        refuse_crowded(config, carriers, subkeys)
        return Plan({"carriers": [carrier.to_dict() for carrier in carriers]}, subkeys)

    def attach(self, claim: Claim) -> None:
        self._watermas_claim = claim
        self._substitutions = find_substitutions(self._bare_model(), claim)
        self._substituted = False
        self._hooked: Any = None
        self._rises: list[torch.Tensor] = []
        config = self.config_of(WaterMASConfig)
        if config.switch_in == 0:
            draw_exchanges(
                self._bare_model(), claim, self._substitutions
            )  # refuses a layer that cannot hide a mark now

    @property
    def payload_capacity(self) -> int:
        """Most payload bytes that this backbone takes beside the evidence bits of the sub-keys that are embedded."""
        carriers = read_carriers(self._watermas_claim.assignment.layout)
        return payload_capacity(self.config_of(WaterMASConfig), carriers, len(self._watermas_claim.subkeys))

    # Replacing

    def _substitute_when_due(self) -> None:
        if self._substituted:
            return
        switch = math.floor(self.config_of(WaterMASConfig).switch_in * self.state.max_steps)
        if self.state.global_step < switch:
            return
        resumed = self.state.global_step > switch
        if resumed:
            values = [item.weights.read() for item in self._substitutions]
        else:
            exchanges = draw_exchanges(self._bare_model(), self._watermas_claim, self._substitutions)
            for exchange in exchanges:
                exchange.donors.write(exchange.returned)
            values = [exchange.values for exchange in exchanges]
        for item, own in zip(self._substitutions, values, strict=True):
            if resumed and not torch.equal(own.cpu().float().sign(), item.raw_signs()):
                raise InvalidInput(
                    "the checkpoint does not hold the carriers of this key; resume from a checkpoint of the run that made it"
                )
            item.values = own.to(item.weights.parameter.device)
        self._substituted = True
        self.impose()

    @torch.no_grad()
    def impose(self, model: nn.Module | None = None) -> None:
        """
        Writes the carriers, bit for bit, into the model in training, or into another one of the same architecture: an average of
        weights whose arithmetic is not exact, say.
        """
        if not self._substituted:
            return
        for item in self._substitutions:
            (item if model is None else item.inside(model, self._bare_model())).write()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        # The innermost one: its step is the last thing that touches the weights, also under a gradient scaler.
        inner = getattr(optimizer, "optimizer", optimizer)
        if self._hooked is not inner:
            inner.register_step_post_hook(lambda *_: self.impose())
            self._hooked = inner
        return optimizer

    # Sharpening

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        config = self.config_of(WaterMASConfig)
        self._substitute_when_due()
        due = self._substituted and config.strength > 0 and self.state.global_step % config.every == 0
        if not due:
            return super().training_step(model, inputs, *args, **kwargs)
        # Both passes see the same batch, dropout and draws of other methods, so only the carriers make a difference.
        micro_step, random = self._micro_step, _RandomState(self.args.device)
        with self._loss_seen_as(lambda loss: (1 + config.strength) * loss) as first:
            result = super().training_step(model, dict(inputs), *args, **kwargs)
        self._micro_step = micro_step
        random.restore()
        classes = int(getattr(getattr(self._bare_model(), "config", None), "num_labels", 0) or 2)
        ceiling = first[0] + 2 * math.log(max(classes, 2))
        with (
            _statistics_kept(model),
            self._ascended(),
            self._loss_seen_as(lambda loss: -config.strength * loss.clamp(max=ceiling.to(loss))) as second,
        ):
            super().training_step(model, dict(inputs), *args, **kwargs)
        self._rises.append(second[0] - first[0])
        return result / (1 + config.strength)

    @contextmanager
    def _loss_seen_as(self, change: Any) -> Iterator[list[torch.Tensor]]:
        """Changes the loss after every stacked method has added to it; gives the unchanged one."""
        compute, seen = self.compute_loss, []

        def changed(*args: Any, **kwargs: Any) -> torch.Tensor:
            loss = compute(*args, **kwargs)
            seen.append(loss.detach())
            return change(loss)

        self.compute_loss = changed  # type: ignore[method-assign]
        try:
            yield seen
        finally:
            del self.compute_loss

    @contextmanager
    def _ascended(self) -> Iterator[None]:
        """The carriers moved along the gradient that this optimizer step has accumulated so far; afterwards exactly as before."""
        try:
            for item, step in zip(self._substitutions, self._ascent(), strict=True):
                item.weights.write(item.values + step)  # type: ignore[operator]
            yield
        finally:
            for item in self._substitutions:
                item.weights.write(item.values)  # type: ignore[arg-type]

    def _ascent(self) -> list[torch.Tensor]:
        """
        Steps of root mean square `radius`, in units u of the carriers of each layer: radius * sqrt(n) * u * (u g) / |u g|. Scaling a layer
        against the next one leaves them the same relative to the layer.
        """
        config = self.config_of(WaterMASConfig)
        units = [item.unit() for item in self._substitutions]
        if config.direction == "ascent":
            steps = [unit * item.weights.gradient() for unit, item in zip(units, self._substitutions, strict=True)]
        else:
            generator = torch.Generator().manual_seed(
                self.step_seed(self._watermas_claim.subkeys[0].secret, b"random")
            )
            steps = [torch.randn(len(item.symbols), generator=generator) for item in self._substitutions]
        norm = torch.stack([step.square().sum().cpu() for step in steps]).sum().sqrt()
        total = sum(len(step) for step in steps)
        length = config.radius * math.sqrt(total) / norm if norm > 0 and norm.isfinite() else torch.zeros(())
        return [
            (step * (unit * float(length))).to(item.values)  # type: ignore[arg-type]
            for unit, step, item in zip(units, steps, self._substitutions, strict=True)
        ]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._rises:
            logs["watermark_sharpness"] = round(float(torch.stack(self._rises).mean()), 4)
            self._rises = []
        super().log(logs, *args, **kwargs)


class _RandomState:
    """Random state of the CPU and of the device in use."""

    def __init__(self, device: torch.device):
        self._device = None if device.type == "cpu" else torch.get_device_module(device)
        self._states = torch.get_rng_state(), self._device and self._device.get_rng_state()

    def restore(self) -> None:
        torch.set_rng_state(self._states[0])
        if self._device:
            self._device.set_rng_state(self._states[1])


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """BatchNorms normalise by the batch and leave their running statistics alone."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
