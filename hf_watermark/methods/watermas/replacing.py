"""Where the carriers lie in a live model, and what they are replaced by."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from ...backbones import Entries, LayoutMismatch, describe, live_weights, locate, read_carriers
from ...keys import Claim
from ...serialization import InvalidInput
from .config import WaterMASConfig
from .substitution import draw_magnitudes, place_symbols, symbol_count, symbols


# A BatchNorm weight behind a carrier keeps its sign at least by this much; float16 still holds it.
LEAST_SCALE = 1e-7


@dataclass
class Substitution:
    """
    The replaced weights of one carrier tensor, of all sub-keys.

    Args:
        carrier (`int`):
            Number of the carrier in the layout.
        order (`torch.Tensor`):
            `[n]`, numbers of these symbols when those of all sub-keys are laid end to end.
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

    carrier: int
    order: torch.Tensor
    weights: Entries
    symbols: torch.Tensor
    scales: Entries | None
    signs: torch.Tensor | None = None
    sign_of: torch.Tensor | None = None
    values: torch.Tensor | None = None

    def inside(self, model: nn.Module, home: nn.Module) -> "Substitution":
        """The same in another model of the architecture of `home`, where this one lies."""
        names = {id(module): name for name, module in home.named_modules()}

        def there(entries: Entries) -> Entries:
            path = names[id(entries.module)]
            return Entries.of(model, f"{path}.{entries.name}" if path else entries.name, entries.flat)

        scales = None if self.scales is None else there(self.scales)
        return replace(self, weights=there(self.weights), scales=scales)

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


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def find_substitutions(model: nn.Module, claim: Claim) -> list[Substitution]:
    """
    The carriers of all sub-keys of a claim in a live model, one [`Substitution`] per tensor, without values.

    Raises:
        [`LayoutMismatch`]: when the key was made for another backbone.
    """
    config, shapes = WaterMASConfig.from_dict(claim.assignment.config), shapes_of(model)
    carriers = read_carriers(claim.assignment.layout)
    if describe(shapes, [carrier.role for carrier in carriers]) != carriers:
        raise LayoutMismatch(
            "the key was made for another backbone: its carriers have other shapes here; make a fresh key"
        )
    count, subkeys = symbol_count(config), len(claim.assignment.subkeys)
    places = [place_symbols(subkey, carriers, count, subkeys) for subkey in claim.subkeys]
    owner, row, column = (torch.cat([getattr(own, name) for own in places]) for name in ("carrier", "row", "column"))
    message = torch.cat([symbols(subkey, config) for subkey in claim.subkeys])
    found = []
    for number in owner.unique().tolist():
        carrier, mine = carriers[number], (owner == number).nonzero()[:, 0]
        names = locate(carrier.role, shapes)
        raw_column = carrier.select(torch.arange(carrier.columns)[None])[0][column[mine]]
        weights = Entries.of(model, names.weight, row[mine] * carrier.columns + raw_column)
        rows, sign_of = row[mine].unique(return_inverse=True)
        scales = None if names.scale is None else Entries.of(model, names.scale, rows)
        found.append(Substitution(number, mine, weights, message[mine], scales, sign_of=sign_of))
    return found


def draw_values(model: nn.Module, claim: Claim, substitutions: list[Substitution]) -> list[torch.Tensor]:
    """
    What the carriers are replaced by, from the present weights of the model: one `[n]` per substitution, the same on every process.

    Raises:
        [`~serialization.InvalidInput`]: when a layer has no weights to hide among.
    """
    config, carriers = WaterMASConfig.from_dict(claim.assignment.config), read_carriers(claim.assignment.layout)
    shapes, weights = shapes_of(model), live_weights(model)
    raw = [
        carrier.select(weights[locate(carrier.role, shapes).weight].detach().reshape(carrier.rows, carrier.columns))
        for carrier in carriers
    ]
    count, subkeys = symbol_count(config), len(claim.assignment.subkeys)
    drawn = [
        draw_magnitudes(subkey, place_symbols(subkey, carriers, count, subkeys), raw, config.lowest)
        for subkey in claim.subkeys
    ]
    magnitudes, values = torch.cat(drawn), []
    for item in substitutions:
        own = magnitudes[item.order]
        if not own.min() > 0:
            raise InvalidInput(
                f"layer {carriers[item.carrier].role!r} is zero in the quantile `lowest` of {config.lowest}, so no mark can hide there; "
                "raise `switch_in` until it has learned something, or `lowest`, or name other `layers`"
            )
        values.append(own * item.raw_signs())
    return values
