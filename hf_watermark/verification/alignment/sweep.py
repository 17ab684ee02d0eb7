"""Sweeps over the spaces of a network in the order in which it writes them, and fits each from what is aligned already."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ...backbones.symmetry import Axis, Change, Mixed, Moved, Symmetry
from ...backbones.symmetry.folding import HUGE
from ...serialization import InvalidInput
from .attention import Heads, fit_heads
from .fitting import Feature, Fit, fit_matrix, fit_permutation, fit_rotation, unit_rows, without_wild_columns


Tensors = dict[str, torch.Tensor]
SWEEPS = 4
# Anchors that agree this well leave nothing for another sweep to find.
EXACT = 0.9995
# A tensor of fewer numbers says nothing about which block it is from.
FEWEST = 32
# Mean resemblance of anchors that only a network of the same origin reaches; independent ones were seen up to 0.56.
KIN = 0.8
# Channels of an image.
MOST_INPUTS = 4


@dataclass
class AlignmentReport:
    """
    What was undone.

    Attributes:
        done (`dict[str, str]`): By space (named by a tensor that writes it), what was found there; nothing where nothing was.
        cosine (`dict[str, float]`): By space, mean resemblance of the matched anchors after alignment.
        recognised (`float`): Share of the channels that were recognised.
        readable (`float`): Share of the carrier weights whose row and column channels were recognised.
        blocks (`dict[str, str]`): By stack of blocks, what was found there; nothing where each is where its name says.
        doubts (`list[str]`): Why a mark may be there and is not seen.
        warnings (`list[str]`): What could not be done.
    """

    done: dict[str, str] = field(default_factory=dict)
    cosine: dict[str, float] = field(default_factory=dict)
    recognised: float = 0.0
    readable: float = 0.0
    blocks: dict[str, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        kinds: dict[str, int] = {}
        for text in self.done.values():
            for part in text.split(", "):
                kind = re.sub(r"^\d+ ", "", part)
                kinds[kind] = kinds.get(kind, 0) + 1
        values = list(self.cosine.values())
        return {
            "undone": kinds,
            "spaces": len(self.cosine),
            "mean_anchor_cosine": round(sum(values) / len(values), 4) if values else 0.0,
            "channels_recognised": round(self.recognised, 4),
            "carriers_readable": round(self.readable, 4),
            "blocks": self.blocks,
            "warnings": self.warnings,
        }


class Sweep:
    """
    One alignment: the changes found so far.

    Args:
        symmetry: What may be changed.
        anchors: The reference's folded tensors that the fit may see.
        suspect: The suspect's folded tensors under the reference's names.
        like: An alignment of other tensors of the same suspect, from which this one goes on.
    """

    def __init__(self, symmetry: Symmetry, anchors: Tensors, suspect: Tensors, like: "Sweep | None" = None):
        self.symmetry, self.anchors = symmetry, dict(anchors)
        # A normalisation that is not there has no channels; and a root of what a stranger wrote need not exist.
        self.suspect = {name: tensor.nan_to_num(0, HUGE, -HUGE) for name, tensor in suspect.items() if tensor.numel()}
        self._widths = self._with_equal_inputs()
        self.change = Change(sizes=self._sizes())
        self.fits: dict[int, Fit] = {}
        self.warnings: list[str] = []
        fixed = {n for n, space in enumerate(self.symmetry.spaces) if space.kind == "fixed"}
        self.known = set(fixed)
        if like is not None:
            self.known |= like.known
            self.change = Change(
                dict(like.change.spaces), dict(like.change.factors), self.change.sizes | like.change.sizes
            )
        self._check_shapes()

    def _with_equal_inputs(self) -> dict[str, list[int]]:
        """
        A first layer for images of other channels: of fewer (grey ones) both sides are summed over them, of more the first ones are compared.
        Gives the shapes of what was made.
        """
        made = {}
        for name, shape in self.symmetry.shapes.items():
            suspect, axes = self.suspect.get(name), self.symmetry.axes.get(name, ())
            if suspect is None or name not in self.anchors or any(axis.axis == 1 for axis in axes):
                continue
            if not suspect.ndim == len(shape) > 2 or suspect.shape[1] == shape[1] or shape[1] > MOST_INPUTS:
                continue
            if suspect.shape[1] > shape[1] > 1:
                self.suspect[name] = suspect[:, : shape[1]]
            else:
                sides = (self.anchors[name], suspect)
                self.anchors[name], self.suspect[name] = (side.sum(dim=1, keepdim=True) for side in sides)
            made[name] = list(self.anchors[name].shape)
        return made

    def _sizes(self) -> dict[int, int]:
        """
        How many channels the suspect has in each space, told by a tensor that holds nothing else. Spaces that cannot change (inputs, labels)
        keep the reference's size, so that a head for other labels does not fit and is left out.
        """
        sizes: dict[int, int] = {}
        for name, axes in self.symmetry.axes.items():
            for axis in axes:
                if len(axis.segments) == 1 and name in self.suspect and self.suspect[name].ndim > axis.axis:
                    segment = axis.segments[0]
                    if self.symmetry.spaces[segment.space].kind == "fixed":
                        continue
                    sizes.setdefault(segment.space, self.suspect[name].shape[axis.axis] // segment.repeat)
        return sizes

    def _check_shapes(self) -> None:
        """`fitting`: tensors that the suspect has in the shape that its channel counts ask for; `usable`: the anchors among them."""
        shapes = self.symmetry.shapes
        self.fitting = []
        for name, shape in shapes.items():
            if name not in self.suspect:
                continue
            wanted = self._widths.get(name, list(shape)).copy()
            for axis in self.symmetry.axes.get(name, ()):
                wanted[axis.axis] = sum(self.change.size(segment) for segment in axis.segments)
            if list(self.suspect[name].shape) == wanted:
                self.fitting.append(name)
        lost = len(shapes) - len(self.fitting)
        if lost:
            first = next(name for name in shapes if name not in self.fitting)
            self.warnings.append(f"{lost} tensors are missing or of another shape and count as zero, first {first!r}")
        self.usable = {name for name in self.fitting if name in self.anchors}

    def refuse_another_architecture(self) -> None:
        """
        Raises:
            [`~serialization.InvalidInput`]: when the suspect lacks most of the reference's tensors.
        """
        shapes = self.symmetry.shapes
        missing = [name for name in shapes if name not in self.suspect]
        if len(missing) > len(shapes) / 2:
            raise InvalidInput(
                f"{len(missing)} of the reference's {len(shapes)} tensors are missing in the suspect, first {missing[0]!r}: "
                "another architecture, or names that are not known; give the suspect under the reference's names"
            )

    def fit(self, sweeps: int = SWEEPS) -> None:
        """Sweeps over the spaces in the order in which the network writes them: writers first, then readers too."""
        for sweep in range(sweeps):
            before = {number: fit.change for number, fit in self.fits.items()}
            for number, space in enumerate(self.symmetry.spaces):
                if space.kind in ("permutation", "orthogonal", "linear"):
                    self._fit_space(number, readers=sweep > 0)
                elif space.kind == "heads" and space.partner is not None and number < space.partner:
                    self._fit_attention(number)
            exact = len(self.known) == len(self.symmetry.spaces) and all(
                fit.cosine > EXACT for fit in self.fits.values()
            )
            if exact or (sweep > 0 and self._settled(before)):
                break

    def _settled(self, before: dict[int, Any]) -> bool:
        for number, fit in self.fits.items():
            old, new = before.get(number), fit.change
            if isinstance(old, Moved) and isinstance(new, Moved):
                settled = torch.equal(old.order, new.order)
            elif isinstance(old, Mixed) and isinstance(new, Mixed):
                settled = float((old.left - new.left).norm()) <= 1e-3 * len(new.left) ** 0.5
            else:
                settled = False
            if not settled:
                return False
        return True

    # One space

    def _fit_space(self, number: int, readers: bool) -> None:
        space = self.symmetry.spaces[number]
        features = list(self.features(number, readers))
        if not features:
            if readers and number not in self.known:
                self.warnings.append(f"no anchor for {self._name(number)}")
            return
        if space.kind == "permutation":
            fit = fit_permutation(features, self.symmetry.scales)
        elif space.kind == "orthogonal" and features[0].suspect.shape[0] == space.size:
            fit = fit_rotation(features, space.size)
        else:
            fit = fit_matrix(features, space.size)
        self._keep(number, fit)

    def _keep(self, number: int, fit: Fit) -> None:
        self.fits[number] = fit
        self.change.spaces[number] = fit.change
        self.change.factors |= fit.factors
        self.known.add(number)

    def unknown(self) -> list[int]:
        """Spaces of the tensors at hand that are not aligned yet."""
        spaces = {s.space for name in self.usable for axis in self.symmetry.axes.get(name, ()) for s in axis.segments}
        return sorted(spaces - self.known)

    def agreement(self, name: str) -> float | None:
        """Resemblance of one anchor whose spaces are all aligned; `None` for any other tensor, and for a few numbers."""
        axes = self.symmetry.axes.get(name, ())
        if name not in self.usable or not axes or self.anchors[name].numel() < FEWEST or not self.anchors[name].std():
            return None
        if any(segment.space not in self.known for axis in axes for segment in axis.segments):
            return None
        own, theirs = self.anchors[name].flatten(), self.change.apply_to(self.suspect[name], axes).flatten()
        theirs = theirs.nan_to_num(0, HUGE, -HUGE)
        return max(0.0, float(unit_rows(own[None])[0] @ unit_rows(theirs[None])[0]))

    def features(self, number: int, readers: bool) -> Iterator[Feature]:
        """What the tensors at hand say about the channels of a space."""
        for name, axis in self.symmetry.touching(number):
            if name not in self.usable or (axis.flow == "in" and not readers):
                continue
            others = [other for other in self.symmetry.axes[name] if other is not axis]
            one_by_one = [other for other in others if other.axis == axis.axis]
            if one_by_one and axis.flow == "in":
                continue
            if any(s.space not in self.known for other in others if other.axis != axis.axis for s in other.segments):
                continue
            suspect = self.change.apply_to(self.suspect[name], self.symmetry.axes[name], skip=axis.axis)
            parts = self._parts(axis, self.anchors[name], suspect)
            for (own, theirs, segment), reads in zip(parts, self._read(axis, one_by_one), strict=True):
                if segment.space == number:
                    # What a stranger wrote may be too large to be multiplied.
                    theirs = theirs.nan_to_num(0, HUGE, -HUGE)
                    theirs, own = without_wild_columns(theirs, own)
                    # A column that carries is held out of the reference, so it says nothing on the other side.
                    theirs = theirs.masked_fill(~own.any(dim=0), 0)
                    yield Feature(theirs, own, axis.flow, segment.scale, reads)

    def _read(self, axis: Axis, one_by_one: list[Axis]) -> list[int | None]:
        """Of every segment of a depthwise row, the class by whose factors it is divided."""
        if not one_by_one:
            return [None] * len(axis.segments)
        read = one_by_one[0].segments
        if [segment.space for segment in read] != [segment.space for segment in axis.segments]:
            return [-1] * len(axis.segments)
        return [None if self.symmetry.scales[segment.scale] == "none" else segment.scale for segment in read]

    def _parts(
        self, axis: Axis, own: torch.Tensor, suspect: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, Any]]:
        """`[channels, K]` of every segment, of the reference and of the suspect."""
        mine = own.split([s.size * s.repeat for s in axis.segments], dim=axis.axis)
        theirs = suspect.split([self.change.size(s) for s in axis.segments], dim=axis.axis)
        for one, two, segment in zip(mine, theirs, axis.segments, strict=True):
            yield _as_rows(one, axis.axis, segment.repeat), _as_rows(two, axis.axis, segment.repeat), segment

    # Attention

    def _fit_attention(self, number: int) -> None:
        partner = self.symmetry.spaces[number].partner
        assert partner is not None
        suspect, reference = self._heads(number, partner)
        if suspect is None or reference is None:
            return
        query, value, order = fit_heads(suspect, reference)
        self._keep(number, query)
        self._keep(partner, value)
        for place, space in enumerate(self.symmetry.spaces):
            if space.kind == "head" and space.partner in (number, partner):
                self.change.spaces[place] = order
                self.known.add(place)

    def _heads(self, number: int, partner: int) -> tuple[Heads | None, Heads | None]:
        found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {"query": [], "key": [], "value": [], "output": []}
        for place in (number, partner):
            for name, axis in self.symmetry.touching(place):
                others = [other for other in self.symmetry.axes[name] if other.axis != axis.axis]
                known = all(s.space in self.known for other in others for s in other.segments)
                if name not in self.usable or not known:
                    continue
                suspect = self.change.apply_to(self.suspect[name], self.symmetry.axes[name], skip=axis.axis)
                for own, theirs, segment in self._parts(axis, self.anchors[name], suspect):
                    if segment.space == place:
                        part = (
                            "output"
                            if axis.flow == "in"
                            else "value"
                            if place == partner
                            else "key"
                            if segment.dual
                            else "query"
                        )
                        found[part].append((own, theirs))
        if not all(found[part] for part in ("query", "key", "value")):
            return None, None
        sides = []
        for side in (1, 0):
            parts: dict[str, Any] = {}
            for part, place in (("query", number), ("key", number), ("value", partner), ("output", partner)):
                count, size = self.symmetry.spaces[place].heads  # type: ignore[misc]
                rows = [pair[side] for pair in sorted(found[part], key=lambda pair: -pair[0].shape[1])]
                if any(len(item) != count * size for item in rows):
                    self.warnings.append(f"{self._name(number)}: the suspect has other heads")
                    return None, None
                parts[part] = torch.cat(rows, dim=1).reshape(count, size, -1) if rows else None
            sides.append(Heads(**parts))
        return sides[0], sides[1]

    # Result

    def recognised(self, space: int, size: int) -> torch.Tensor:
        if self.symmetry.spaces[space].kind == "fixed":
            return torch.ones(size, dtype=torch.bool)
        fit = self.fits.get(space)
        return torch.zeros(size, dtype=torch.bool) if fit is None else fit.recognised

    def kinship(self) -> float:
        """
        Share of the channels that are told one by one and look much like the reference's, which those of no other network do. That a matrix or a
        rotation was found says little.
        """
        spaces = self.symmetry.spaces
        fits = [fit for number, fit in self.fits.items() if spaces[number].kind == "permutation"]
        same = sum(int(fit.recognised.sum()) for fit in fits if fit.cosine > KIN and len(fit.recognised) > 1)
        return same / max(1, sum(len(fit.recognised) for fit in fits))

    def _name(self, number: int) -> str:
        names = [name for name, axis in self.symmetry.touching(number) if axis.flow == "out"]
        return names[0] if names else f"space {number}"

    def report(self) -> AlignmentReport:
        report = AlignmentReport(warnings=list(dict.fromkeys(self.warnings)))
        for number, fit in self.fits.items():
            name = self._name(number)
            report.cosine[name] = round(fit.cosine, 4)
            if fit.done:
                report.done[name] = fit.done
        counts = [(int(fit.recognised.sum()), len(fit.recognised)) for fit in self.fits.values()]
        report.recognised = sum(kept for kept, _ in counts) / max(1, sum(size for _, size in counts))
        return report


def _as_rows(tensor: torch.Tensor, axis: int, repeat: int) -> torch.Tensor:
    rows = tensor.movedim(axis, 0)
    return rows.reshape(len(rows) // repeat, -1)
