"""
Undoes function-preserving changes: brings a suspect's weights into the coordinates of the owner's reference model.

The fit sees anchors only. Carriers are taken out of the reference *before* anything is compared, so that what they say about a
suspect stays as independent of the key as it was (protocol.md §5.2, normative).
"""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..backbones import Carrier, describe, locate
from ..serialization import InvalidInput
from ..symmetry import Axis, Change, Mixed, Moved, Symmetry, fold, symmetry_of, unfold
from .attention import Heads, fit_heads
from .fitting import Feature, Fit, fit_matrix, fit_permutation, fit_rotation
from .names import rename_like


Tensors = dict[str, torch.Tensor]
SWEEPS = 4


@dataclass
class AlignmentReport:
    """
    What was undone.

    Attributes:
        done (`dict[str, str]`): By space (named by a tensor that writes it), what was found there; nothing where nothing was.
        cosine (`dict[str, float]`): By space, mean resemblance of the matched anchors after alignment.
        recognised (`float`): Share of the channels that were recognised.
        readable (`float`): Share of the carrier weights whose row and column channels were recognised.
        warnings (`list[str]`): What could not be done.
    """

    done: dict[str, str] = field(default_factory=dict)
    cosine: dict[str, float] = field(default_factory=dict)
    recognised: float = 0.0
    readable: float = 0.0
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
            "warnings": self.warnings,
        }


@dataclass
class AlignedWeights:
    """
    A suspect in the reference's coordinates.

    Attributes:
        tensors (`dict[str, torch.Tensor]`): State dict of the reference's architecture.
        report ([`AlignmentReport`]): What was undone, and what is left.
    """

    tensors: Tensors
    report: AlignmentReport


class Aligner:
    """
    Aligns suspects to one reference model.

    Args:
        reference (`nn.Module`):
            The owner's model.
        carriers (`list[Carrier]`, *optional*):
            Tensors that never enter the fit; all carriers of the backbone's family by default.
        images (`torch.Tensor`, *optional*):
            One image to trace the model with.

    Raises:
        [`~serialization.InvalidInput`]: when the reference cannot be traced.
    """

    def __init__(
        self, reference: nn.Module, carriers: list[Carrier] | None = None, images: torch.Tensor | None = None
    ):
        self.symmetry: Symmetry = symmetry_of(reference, images)
        self.state = {name: tensor.detach().clone() for name, tensor in reference.state_dict().items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in self.state.items()}
        self.carriers = describe(shapes) if carriers is None else carriers
        self.held = {locate(carrier.role, shapes).weight: carrier for carrier in self.carriers}
        # Anchors: what the fit may see. Carriers are not in here.
        self.anchors = self._without_carriers(fold(self.symmetry, self.state))

    def _without_carriers(self, folded: Tensors) -> Tensors:
        anchors = {}
        for name, tensor in folded.items():
            carrier = self.held.get(name)
            if carrier is None:
                anchors[name] = tensor
            elif carrier.every_third_input:
                anchors[name] = tensor.clone()
                anchors[name][:, 2::3] = 0
        return anchors

    def align(self, suspect: Mapping[str, torch.Tensor], erase: bool = True) -> AlignedWeights:
        """
        Args:
            suspect (`Mapping[str, torch.Tensor]`):
                The suspect's tensors by name: of this architecture, with other channel counts, of its port to another library, in any
                float type.
            erase (`bool`, *optional*, defaults to `True`):
                Set carriers to zero whose channels were not recognised: they say nothing, and a verifier leaves them out.

        Raises:
            [`~serialization.InvalidInput`]: when the suspect lacks the reference's tensors.
        """
        given = rename_like(suspect, self.state)
        folded = fold(self.symmetry, given)
        run = _Run(self, folded)
        run.fit()
        aligned = run.change.apply(self.symmetry, {name: folded[name] for name in run.fitting})
        if erase:
            self._erase(aligned, run)
        report = run.report()
        report.readable = self._readable(run)
        return AlignedWeights(unfold(self.symmetry, aligned, self.state), report)

    def with_random_carriers(
        self, carriers: list[Carrier], suspect: Mapping[str, torch.Tensor]
    ) -> tuple[Tensors, AlignedWeights]:
        """A state dict of the reference with random carriers, and the suspect aligned to it, with all else as it is."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.state.items()}
        decoy = dict(self.state)
        for carrier in carriers:
            name = locate(carrier.role, shapes).weight
            random = torch.randn(decoy[name].shape) * decoy[name].float().std()
            if carrier.every_third_input:
                decoy[name] = decoy[name].clone()
                decoy[name][:, 2::3] = random[:, 2::3]
            else:
                decoy[name] = random
        other = copy.copy(self)
        other.state = decoy
        other.anchors = other._without_carriers(fold(self.symmetry, decoy))
        return decoy, other.align(suspect)

    def _masks(self, run: "_Run") -> Iterator[tuple[str, torch.Tensor]]:
        """Which weights of every carrier are readable, `[rows, columns]`."""
        for name in self.held:
            rows, columns = (
                torch.cat([run.recognised(s.space, s.size).repeat_interleave(s.repeat) for s in axis.segments])
                for axis in sorted(self.symmetry.axes[name], key=lambda axis: axis.axis)
            )
            yield name, rows[:, None] & columns[None, :]

    def _erase(self, aligned: Tensors, run: "_Run") -> None:
        for name, mask in self._masks(run):
            if name not in aligned:
                continue
            tensor = aligned[name]
            aligned[name] = tensor * mask.reshape(*mask.shape, *[1] * (tensor.ndim - 2)).to(tensor)

    def _readable(self, run: "_Run") -> float:
        shares = [(int(mask.sum()) * (name in run.fitting), mask.numel()) for name, mask in self._masks(run)]
        return sum(kept for kept, _ in shares) / max(1, sum(size for _, size in shares))


class _Run:
    """One alignment: the changes found so far."""

    def __init__(self, aligner: Aligner, suspect: Tensors):
        self.aligner, self.symmetry, self.suspect = aligner, aligner.symmetry, suspect
        self.anchors = aligner.anchors
        self.change = Change(sizes=self._sizes())
        self.fits: dict[int, Fit] = {}
        self.warnings: list[str] = []
        fixed = {n for n, space in enumerate(self.symmetry.spaces) if space.kind == "fixed"}
        self.known = set(fixed)
        self._check_shapes()

    def _sizes(self) -> dict[int, int]:
        """How many channels the suspect has in each space, told by a tensor that holds nothing else."""
        sizes: dict[int, int] = {}
        for name, axes in self.symmetry.axes.items():
            for axis in axes:
                if len(axis.segments) == 1 and name in self.suspect and self.suspect[name].ndim > axis.axis:
                    segment = axis.segments[0]
                    sizes.setdefault(segment.space, self.suspect[name].shape[axis.axis] // segment.repeat)
        return sizes

    def _check_shapes(self) -> None:
        """`fitting`: tensors that the suspect has in the shape that its channel counts ask for; `usable`: the anchors among them."""
        shapes = self.symmetry.shapes
        missing = [name for name in shapes if name not in self.suspect]
        if len(missing) > len(shapes) / 2:
            raise InvalidInput(
                f"{len(missing)} of the reference's {len(shapes)} tensors are missing in the suspect, first {missing[0]!r}: "
                "another architecture, or names that are not known; give the suspect under the reference's names"
            )
        self.fitting = []
        for name, shape in shapes.items():
            wanted = list(shape)
            for axis in self.symmetry.axes.get(name, ()):
                wanted[axis.axis] = sum(self.change.size(segment) for segment in axis.segments)
            if name in self.suspect and list(self.suspect[name].shape) == wanted:
                self.fitting.append(name)
        lost = len(shapes) - len(self.fitting)
        if lost:
            first = next(name for name in shapes if name not in self.fitting)
            self.warnings.append(f"{lost} tensors are missing or of another shape and count as zero, first {first!r}")
        self.usable = {name for name in self.fitting if name in self.anchors}

    def fit(self) -> None:
        """Sweeps over the spaces in the order in which the network writes them: writers first, then readers too."""
        for sweep in range(SWEEPS):
            before = {number: fit.change for number, fit in self.fits.items()}
            for number, space in enumerate(self.symmetry.spaces):
                if space.kind in ("permutation", "orthogonal", "linear"):
                    self._fit_space(number, readers=sweep > 0)
                elif space.kind == "heads" and space.partner is not None and number < space.partner:
                    self._fit_attention(number)
            if sweep > 0 and self._settled(before):
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
        features = list(self._features(number, readers))
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

    def _features(self, number: int, readers: bool) -> Iterator[Feature]:
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
            for own, theirs, segment in self._parts(axis, self.anchors[name], suspect):
                if segment.space == number:
                    theirs = self._divided(theirs, one_by_one, number)
                    yield Feature(theirs, own, axis.flow, segment.scale)

    def _divided(self, rows: torch.Tensor, one_by_one: list[Axis], number: int) -> torch.Tensor:
        """A depthwise row also holds one over the factor of what it reads; before the channels are matched that factor is not known."""
        if not one_by_one or number not in self.fits:
            return rows
        [segment] = one_by_one[0].segments
        factors, fit = self.change.factors.get(segment.scale), self.fits[number]
        if factors is None or not hasattr(fit.change, "source"):
            return rows
        scale = torch.ones(len(rows))
        scale[fit.change.source] = factors.columns
        return rows * scale[:, None]

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


def align(
    suspect: Mapping[str, torch.Tensor] | nn.Module, reference: nn.Module, carriers: list[Carrier] | None = None
) -> AlignedWeights:
    """
    Brings a suspect into the coordinates of a reference model.

    Args:
        suspect (`Mapping[str, torch.Tensor]` or `nn.Module`):
            Its tensors.
        reference (`nn.Module`):
            The owner's model.
        carriers (`list[Carrier]`, *optional*):
            Tensors that never enter the fit; all carriers of the backbone's family by default.

    Returns:
        [`AlignedWeights`]: tensors under the reference's names, and a report.

    Example:

    ```python
    >>> from hf_watermark.alignment import align

    >>> aligned = align(suspect, reference)
    >>> aligned.report.to_dict()["carriers_readable"]
    1.0
    ```
    """
    tensors = suspect.state_dict() if isinstance(suspect, nn.Module) else suspect
    return Aligner(reference, carriers).align(tensors)
