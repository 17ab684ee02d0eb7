"""Replaces carrier weights, keeps them, and trains the others so that the loss is sharp around them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...backbones import (
    Carrier,
    Entries,
    LayoutMismatch,
    describe,
    live_weights,
    locate,
    read_carriers,
)
from ...keys import Claim
from ...serialization import InvalidInput
from ...trainer import Plan, WatermarkTrainer
from .config import WaterMASConfig
from .substitution import (
    draw_magnitudes,
    fitting_subkeys,
    payload_capacity,
    place_symbols,
    refuse_crowded,
    symbol_count,
    symbols,
)
from .verifier import WaterMASVerifier


# A BatchNorm weight behind a carrier keeps its sign at least by this much; float16 still holds it.
LEAST_SCALE = 1e-7


@dataclass
class Substitution:
    """
    The replaced weights of one carrier tensor, of all sub-keys.

    Args:
        weights (`Entries`):
            The replaced weights.
        symbols (`torch.Tensor`):
            `[n]`, +-1.
        scales (`Entries`, *optional*):
            One BatchNorm weight or LayerScale per row that holds a carrier, because its sign is part of what is read.
        signs (`torch.Tensor`, *optional*):
            `[rows]`, the signs that they keep.
        sign_of (`torch.Tensor`, *optional*):
            `[n]`, which of the `signs` belongs to each weight.
        values (`torch.Tensor`, *optional*):
            `[n]`, what the weights are replaced by, once that is known.
    """

    weights: Entries
    symbols: torch.Tensor
    scales: Entries | None
    signs: torch.Tensor | None = None
    sign_of: torch.Tensor | None = None
    values: torch.Tensor | None = None

    def raw_signs(self) -> torch.Tensor:
        """Signs of the raw weights under which the canonical ones read as the symbols, `[n]`."""
        if self.scales is None:
            return self.symbols
        scales = self.scales.read().float().cpu()
        self.signs = torch.where(scales < 0, -1.0, 1.0)
        return self.symbols * self.signs[self.sign_of]

    def write(self) -> None:
        assert self.values is not None
        self.weights.write(self.values)
        if self.scales is not None:
            assert self.signs is not None
            scales = self.scales.read()
            self.signs = self.signs.to(scales.device)
            kept = (scales * self.signs).clamp(min=LEAST_SCALE) * self.signs
            self.scales.write(kept.to(scales))

    def unit(self) -> float:
        """Root mean square of the values."""
        assert self.values is not None
        return float(self.values.float().square().mean().sqrt())


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
        carriers = describe(self._live_shapes(), config.layers)
        subkeys = config.subkeys or fitting_subkeys(carriers, config)
        refuse_crowded(config, carriers, subkeys)
        return Plan({"carriers": [carrier.to_dict() for carrier in carriers]}, subkeys)

    def attach(self, claim: Claim) -> None:
        config, model, shapes = self.config_of(WaterMASConfig), self._bare_model(), self._live_shapes()
        self._carriers = read_carriers(claim.assignment.layout)
        if describe(shapes, [carrier.role for carrier in self._carriers]) != self._carriers:
            raise LayoutMismatch(
                "the key was made for another backbone: its carriers have other shapes here; make a fresh key"
            )
        self._mark_subkeys = claim.subkeys
        count, subkeys = symbol_count(config), len(claim.assignment.subkeys)
        self._places = [place_symbols(subkey, self._carriers, count, subkeys) for subkey in claim.subkeys]
        owner = torch.cat([places.carrier for places in self._places])
        row = torch.cat([places.row for places in self._places])
        column = torch.cat([places.column for places in self._places])
        message = torch.cat([symbols(subkey, config) for subkey in claim.subkeys])
        # Which entries of all sub-keys laid end to end lie in each tensor.
        self._owned = {number: (owner == number).nonzero()[:, 0] for number in owner.unique().tolist()}
        self._substitutions = []
        for number, mine in self._owned.items():
            carrier = self._carriers[number]
            found = locate(carrier.role, shapes)
            raw_column = carrier.select(torch.arange(carrier.columns)[None])[0][column[mine]]
            weights = Entries.of(model, found.weight, row[mine] * carrier.columns + raw_column)
            rows, sign_of = row[mine].unique(return_inverse=True)
            scales = None if found.scale is None else Entries.of(model, found.scale, rows)
            self._substitutions.append(Substitution(weights, message[mine], scales, sign_of=sign_of))
        self._substituted = False
        self._hooked: Any = None
        self._rises: list[torch.Tensor] = []
        if config.switch_in == 0:
            self._draw()  # a layer that cannot hide a mark is refused now, not at the first step

    def _live_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(weight.shape) for name, weight in self._bare_model().named_parameters()}

    @property
    def payload_capacity(self) -> int:
        """Most payload bytes that this backbone takes beside the evidence bits of the sub-keys that are embedded."""
        return payload_capacity(self.config_of(WaterMASConfig), self._carriers, len(self._mark_subkeys))

    # Replacing

    def _draw(self) -> list[torch.Tensor]:
        """New values for every substitution, from the present weights. The same on every process."""
        config = self.config_of(WaterMASConfig)
        shapes, weights = self._live_shapes(), live_weights(self._bare_model())
        raw = [self._eligible(carrier, weights[locate(carrier.role, shapes).weight]) for carrier in self._carriers]
        drawn = [
            draw_magnitudes(subkey, places, raw, config.lowest)
            for subkey, places in zip(self._mark_subkeys, self._places, strict=True)
        ]
        magnitudes, values = torch.cat(drawn), []
        for (number, mine), item in zip(self._owned.items(), self._substitutions, strict=True):
            if not magnitudes[mine].min() > 0:
                raise InvalidInput(
                    f"layer {self._carriers[number].role!r} is zero in the quantile `lowest` of {config.lowest}, so no mark can hide there; "
                    "raise `switch_in` until it has learned something, or `lowest`, or name other `layers`"
                )
            values.append(magnitudes[mine] * item.raw_signs())
        return values

    def _eligible(self, carrier: Carrier, weight: torch.Tensor) -> torch.Tensor:
        return carrier.select(weight.detach().reshape(carrier.rows, carrier.columns))

    def _substitute_when_due(self) -> None:
        if self._substituted:
            return
        switch = math.floor(self.config_of(WaterMASConfig).switch_in * self.state.max_steps)
        if self.state.global_step < switch:
            return
        resumed = self.state.global_step > switch
        values = [item.weights.read() for item in self._substitutions] if resumed else self._draw()
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
            if model is None:
                item.write()
            else:
                self._elsewhere(item, model).write()

    def _elsewhere(self, item: Substitution, model: nn.Module) -> Substitution:
        names = {id(module): name for name, module in self._bare_model().named_modules()}

        def there(entries: Entries) -> Entries:
            path = names[id(entries.module)]
            return Entries.of(model, f"{path}.{entries.name}" if path else entries.name, entries.flat)

        scales = None if item.scales is None else there(item.scales)
        return Substitution(there(item.weights), item.symbols, scales, item.signs, item.sign_of, item.values)

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
            generator = torch.Generator().manual_seed(self.step_seed(self._mark_subkeys[0].secret, b"random"))
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
