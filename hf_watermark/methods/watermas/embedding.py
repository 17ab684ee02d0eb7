"""Replaces carrier weights, keeps them, and trains the others so that the loss is sharp around them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...backbones import layout_of, live_weights, read_carriers, witnessed
from ...keys import Claim
from ...serialization import InvalidInput
from ...training.embedding import Embedding, Moment, Plan, Step, TrainingData
from .config import WaterMASConfig
from .replacing import centre_rows, draw_exchanges, find_substitutions
from .substitution import fitting_subkeys, payload_capacity, refuse_crowded
from .verifier import WaterMASVerifier


class WaterMASEmbedding(Embedding):
    """
    Puts the key's bits into the signs of single, key-drawn weights. They are written again after
    every optimizer step, and the other weights w_u are trained on

        J = L(w) - lambda * (min(L(w + e), L(w) + 2 ln K) - L(w)),   e = radius * ascent direction of L, on the carriers only

    where K is the number of classes: whoever moves the carriers then loses accuracy. See [`WaterMASConfig`].
    """

    verifier_class = WaterMASVerifier
    writable = True

    config: WaterMASConfig

    @classmethod
    def plan(cls, model: nn.Module, data: TrainingData, config: WaterMASConfig, secret: bytes) -> Plan:
        carriers = layout_of(model, config.layers)
        subkeys = config.subkeys or fitting_subkeys(carriers, config)
        refuse_crowded(config, carriers, subkeys)
        carriers = witnessed(carriers, live_weights(model))
        return Plan({"carriers": [carrier.to_dict() for carrier in carriers]}, subkeys)

    def __init__(self, model: nn.Module, claim: Claim, data: TrainingData = TrainingData()):
        super().__init__(model, claim, data)
        self._carriers = read_carriers(claim.assignment.layout)
        self.substitutions = find_substitutions(model, claim)
        self.substituted = False
        self._rises: list[torch.Tensor] = []
        if self.config.switch_in == 0:
            draw_exchanges(model, claim, self.substitutions)  # refuses a layer that cannot hide a mark now

    @property
    def counts_on_steps(self) -> bool:
        return self.config.switch_in > 0

    @property
    def payload_capacity(self) -> int:
        """Most payload bytes that this backbone takes beside the evidence bits of the sub-keys that are embedded."""
        return payload_capacity(self.config, self._carriers, len(self.claim.subkeys))

    # Replacing

    def substitute_when_due(self) -> None:
        """
        Puts the carriers in at their step, or takes those of a checkpoint over.

        Raises:
            [`~serialization.InvalidInput`]: when the checkpoint was made under another key.
        """
        if self.substituted:
            return
        switch = math.floor(self.config.switch_in * self.moment.steps)
        if self.moment.step < switch:
            return
        resumed = self.moment.step > switch
        if resumed:
            values = [item.weights.read() for item in self.substitutions]
        else:
            centre_rows(self.model, self.claim)
            exchanges = draw_exchanges(self.model, self.claim, self.substitutions)
            for exchange in exchanges:
                exchange.donors.write(exchange.returned)
            values = [exchange.values for exchange in exchanges]
        for item, own in zip(self.substitutions, values, strict=True):
            if resumed and not torch.equal(own.cpu().float().sign(), item.raw_signs()):
                raise InvalidInput(
                    "the checkpoint does not hold the marked weights of this key; resume from a checkpoint of the run that made it"
                )
            item.values = own.to(item.weights.parameter.device)
        self.substituted = True
        self.impose()

    @torch.no_grad()
    def impose(self, model: nn.Module | None = None) -> None:
        """
        Writes the carriers, bit for bit, into the model in training, or into another one of the same architecture: an average of
        weights whose arithmetic is not exact, say.
        """
        if not self.substituted:
            return
        for item in self.substitutions:
            (item if model is None else item.inside(model, self.model)).write()

    def after_update(self) -> None:
        self.impose()

    def write(self, only: str | None = None) -> dict[str, torch.Tensor]:
        if not self.substituted:
            self.moment = Moment()  # before the first of no steps: now
            self.substitute_when_due()
        self.impose()
        held = {}
        for item in self.substitutions:
            name = self._carriers[item.carrier].name
            mask = torch.zeros(self._carriers[item.carrier].shape, dtype=torch.bool).flatten()
            mask[item.weights.flat.cpu()] = True
            held[name] = mask.reshape(len(mask) // self._carriers[item.carrier].columns, -1)
        return held

    # Sharpening

    def around_step(self, step: Step) -> torch.Tensor:
        config = self.config
        self.substitute_when_due()
        if not self.substituted or config.strength == 0 or self.moment.step % config.every:
            return step()
        losses: list[torch.Tensor] = []

        def first(loss: torch.Tensor) -> torch.Tensor:
            losses.append(loss.detach())
            return (1 + config.strength) * loss

        def second(loss: torch.Tensor) -> torch.Tensor:
            losses.append(loss.detach())
            ceiling = losses[0] + 2 * math.log(max(classes, 2))
            return -config.strength * loss.clamp(max=ceiling.to(loss))

        classes = int(getattr(getattr(self.model, "config", None), "num_labels", 0) or 2)
        # Both passes see the same batch, dropout and draws of other methods, so only the carriers make a difference.
        random = _RandomState(next(self.model.parameters()).device)
        result = step(first)
        random.restore()
        with _statistics_kept(self.model), self._ascended():
            step(second)
        self._rises.append(losses[1] - losses[0])
        return result / (1 + config.strength)

    @contextmanager
    def _ascended(self) -> Iterator[None]:
        """The carriers moved along the gradient that this optimizer step has accumulated so far; afterwards exactly as before."""
        try:
            for item, step in zip(self.substitutions, self._ascent(), strict=True):
                item.weights.write(item.values + step)  # type: ignore[operator]
            yield
        finally:
            for item in self.substitutions:
                item.weights.write(item.values)  # type: ignore[arg-type]

    def _ascent(self) -> list[torch.Tensor]:
        """
        Steps of root mean square `radius`, in units u of the carriers of each layer: radius * sqrt(n) * u * (u g) / |u g|. Scaling a layer
        against the next one leaves them the same relative to the layer.
        """
        config = self.config
        units = [item.unit() for item in self.substitutions]
        if config.direction == "ascent":
            steps = [unit * item.weights.gradient() for unit, item in zip(units, self.substitutions, strict=True)]
        else:
            generator = self.moment.generator(self.claim.subkeys[0].secret, b"random")
            steps = [torch.randn(len(item.symbols), generator=generator) for item in self.substitutions]
        norm = torch.stack([step.square().sum().cpu() for step in steps]).sum().sqrt()
        total = sum(len(step) for step in steps)
        length = config.radius * math.sqrt(total) / norm if norm > 0 and norm.isfinite() else torch.zeros(())
        return [
            (step * (unit * float(length))).to(item.values)  # type: ignore[arg-type]
            for unit, step, item in zip(units, steps, self.substitutions, strict=True)
        ]

    def logs(self) -> dict[str, float]:
        if not self._rises:
            return {}
        rise = round(float(torch.stack(self._rises).mean()), 4)
        self._rises = []
        return {"watermark_sharpness": rise}


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
