"""Where the carriers lie in a live model, and what they are replaced by."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from ...backbones import Entries, live_weights, located, read_carriers, refuse_other_shapes
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
    refuse_other_shapes(carriers, shapes)
    count, subkeys = symbol_count(config), len(claim.assignment.subkeys)
    places = [place_symbols(subkey, carriers, count, subkeys) for subkey in claim.subkeys]
    owner, row, column = (torch.cat([getattr(own, name) for own in places]) for name in ("carrier", "row", "column"))
    message = torch.cat([symbols(subkey, config) for subkey in claim.subkeys])
    found = []
    for number in owner.unique().tolist():
        carrier, mine = carriers[number], (owner == number).nonzero()[:, 0]
        names = located(carrier, shapes)
        raw_column = carrier.select(torch.arange(carrier.columns)[None])[0][column[mine]]
        weights = Entries.of(model, names.weight, row[mine] * carrier.columns + raw_column)
        rows, sign_of = row[mine].unique(return_inverse=True)
        scales = None if names.scale is None else Entries.of(model, names.scale, rows)
        found.append(Substitution(number, mine, weights, message[mine], scales, sign_of=sign_of))
    return found


@dataclass
class Exchange:
    """
    What is written once, when the carriers are replaced.

    Args:
        values (`torch.Tensor`):
            `[n]`, what the carriers of one [`Substitution`] are replaced by.
        donors (`Entries`):
            The weights whose magnitudes these are, without those that are carriers themselves or give twice.
        returned (`torch.Tensor`):
            What these get for it: the carriers' old magnitudes under their own signs, so that the layer's histogram stays as it was.
    """

    values: torch.Tensor
    donors: Entries
    returned: torch.Tensor


def draw_exchanges(model: nn.Module, claim: Claim, substitutions: list[Substitution]) -> list[Exchange]:
    """
    What the carriers are replaced by, from the present weights of the model: one [`Exchange`] per substitution, the same on every process.

    Raises:
        [`~serialization.InvalidInput`]: when a layer has no weights to hide among.
    """
    config, carriers = WaterMASConfig.from_dict(claim.assignment.config), read_carriers(claim.assignment.layout)
    shapes, weights = shapes_of(model), live_weights(model)
    raw = [
        carrier.select(weights[located(carrier, shapes).weight].detach().reshape(carrier.rows, carrier.columns))
        for carrier in carriers
    ]
    count, subkeys = symbol_count(config), len(claim.assignment.subkeys)
    drawn = [
        draw_magnitudes(subkey, place_symbols(subkey, carriers, count, subkeys), raw, config.lowest)
        for subkey in claim.subkeys
    ]
    magnitudes, donors = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    exchanges = []
    for item in substitutions:
        carrier, own = carriers[item.carrier], magnitudes[item.order]
        if not own.min() > 0:
            raise InvalidInput(
                f"layer {carrier.role!r} is zero in the quantile `lowest` of {config.lowest}, so no mark fits there; "
                "raise `switch_in` until it has learned something, or `lowest`, or name other `layers`"
            )
        column = carrier.select(torch.arange(carrier.columns)[None])[0]
        given = donors[item.order]
        places = given // carrier.eligible * carrier.columns + column[given % carrier.eligible]
        first = _first_of_each(places) & ~torch.isin(places, item.weights.flat.cpu())
        giving = Entries.of(model, located(carrier, shapes).weight, places[first])
        signs, old = giving.read(), item.weights.read().abs()[first.to(item.weights.parameter.device)]
        exchanges.append(Exchange(own * item.raw_signs(), giving, torch.where(signs < 0, -old, old)))
    return exchanges


@torch.no_grad()
def centre_rows(model: nn.Module, claim: Claim) -> None:
    """Takes the mean away from the rows of carriers that are read without it, which changes no answer: then a symbol is the sign of a weight here too."""
    shapes = shapes_of(model)
    for carrier in read_carriers(claim.assignment.layout):
        if carrier.centred:
            weight = model.get_parameter(located(carrier, shapes).weight)
            weight.sub_(weight.mean(dim=tuple(range(1, weight.ndim)), keepdim=True))


def _first_of_each(values: torch.Tensor) -> torch.Tensor:
    """`[n]`, whether no earlier entry is equal."""
    order = values.argsort(stable=True)
    ranked = values[order]
    first = torch.ones(len(values), dtype=torch.bool)
    first[order[1:]] = ranked[1:] != ranked[:-1]
    return first
