"""
Undoes function-preserving changes: brings a suspect's weights into the coordinates of the owner's reference model.

The fit sees anchors only. Carriers are taken out of the reference *before* anything is compared, so that what they say about a
suspect stays as independent of the key as it was (PROTOCOL.md §5.2, normative).
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ...backbones import Carrier, Found, layout_of, located, read_float, shapes_in
from ...backbones.names import Renamed, Source, in_form_of
from ...backbones.stored.turning import in_order_of
from ...backbones.symmetry import Symmetry, fold, symmetry_of, unfold
from ...serialization import InvalidInput
from .blocks import BlockMatching, Blocks, folded_as_given, spelled_with_surplus
from .sweep import AlignmentReport, Sweep


Tensors = dict[str, torch.Tensor]
# A suspect whose carriers are readable to less than this share is looked at once more, by the contents of its blocks.
ENOUGH = 0.5
# One of which so many channels are the reference's stems from it; where so little of what carries is readable, that it shows no mark means nothing.
SOME, LITTLE = 0.25, 0.1


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
            Tensors that never enter the fit; all carriers of the model by default.
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
        self.carriers = layout_of(reference) if carriers is None else carriers
        # Which weights of a row are held out, `[1, in, height, width]` or `[1, in]`; and of which weights a row is read without its mean.
        self.held: dict[str, torch.Tensor] = {}
        self.centred: set[str] = set()
        for carrier in self.carriers:
            found = located(carrier, shapes)
            part = held_out(carrier, found, shapes[found.weight])
            self.held[found.weight] = self.held.get(found.weight, part) | part
            self.centred |= {found.weight} if carrier.centred else set()
        # Into these biases the shift of a normalisation is written, through the whole weight behind it: its carriers would be seen in them.
        self.shifted = {
            self.symmetry.biases[reader]
            for norm in self.symmetry.norms.values()
            if norm.bias is not None
            for reader in norm.readers
            if reader in self.held and reader in self.symmetry.biases
        }
        for name in self.held:
            # Integers are taken over from the reference as they are, and a carrier must never be.
            if not self.state[name].is_floating_point():
                raise InvalidInput(
                    f"reference: carrier {name} is {self.state[name].dtype}; give the model with float weights"
                )
        # Anchors: what the fit may see. Carriers are not in here.
        self.anchors = self._without_carriers(fold(self.symmetry, self.state))

    def _without_carriers(self, folded: Tensors) -> Tensors:
        anchors = {}
        for name, tensor in folded.items():
            held = self.held.get(name)
            if name in self.shifted:
                continue
            if held is None:
                anchors[name] = tensor
            elif not held.all():
                held = held.to(tensor.device)
                anchors[name] = torch.where(held, 0, tensor)
                if name in self.centred:
                    # Mean and size of the whole row would say something of the carriers in it.
                    rows, axes = anchors[name], tuple(range(1, tensor.ndim))
                    rows = torch.where(held, 0, rows - rows.sum(axes, keepdim=True) / (~held).sum())
                    anchors[name] = rows / rows.square().mean(axes, keepdim=True).sqrt().clamp_min(1e-30)
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
            [`~serialization.InvalidInput`]: when the suspect lacks the reference's tensors, or these do not fit each other.
        """
        sources, shapes = spelled_with_surplus(list(suspect), list(self.state)), shapes_in(suspect)
        biases = self._folded_biases(sources, shapes)
        sources |= biases
        there = {name: source.shape(shapes) for name, source in sources.items()}
        state = self.state | {name: torch.zeros(there[name]) for name in biases}
        wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
        renamed = Renamed(suspect, sources, in_order_of(wanted, there, read_float))
        matching = BlockMatching(self.symmetry, self.anchors, state, renamed, list(self.held))
        found = matching.match(differing) if (differing := matching.differing()) else matching.unmoved()
        best, folded = self._fitted(renamed, found, state)
        if not differing and self._readable(best) < ENOUGH and (stacks := matching.of_one_kind()):
            # As many blocks as there should be, and they do not fit where their names put them.
            other = matching.match(stacks)
            if other.moved:
                run, given = self._fitted(renamed, other, state)
                if self._readable(run) > self._readable(best):
                    best, folded, found = run, given, other
        return self._result(best, folded, found, erase)

    def _folded_biases(
        self, sources: Mapping[str, Source], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, Source]:
        """Biases that the suspect has where the reference has a normalisation instead: it was written into the layer."""
        used = {name for source in sources.values() for name in source.names}
        found = {}
        for item in self.symmetry.net.folds:
            weight = sources.get(f"{item.layer}.weight")
            if weight is None or f"{item.layer}.bias" in self.state or weight.of > 1 or len(weight.names) > 1:
                continue
            name = weight.names[0].removesuffix("weight") + "bias"
            if name in shapes and name not in used and shapes[name] == weight.shape(shapes)[:1]:
                found[f"{item.layer}.bias"] = Source((name,))
        return found

    def _fitted(self, renamed: Renamed, found: Blocks, state: Tensors) -> tuple[Sweep, Tensors]:
        """The fit, and the suspect's tensors, folded, with what the fit does not see."""
        # Integers (counters) are the reference's own.
        floats = {name: source for name, source in found.sources.items() if state[name].is_floating_point()}
        given = {name: in_form_of(renamed.of(source), state[name].shape) for name, source in floats.items()}
        given = {name: item for name, item in given.items() if self._has_the_labels(name, item)}
        folded = folded_as_given(self.symmetry, given)
        run = Sweep(self.symmetry, self.anchors, self._as_seen(folded))
        run.refuse_another_architecture()
        run.fit()
        return run, folded

    def _has_the_labels(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor has as many channels where these cannot change: a head for other labels says nothing, and goes with nothing."""
        for axis in self.symmetry.axes.get(name, ()):
            if all(self.symmetry.spaces[segment.space].kind == "fixed" for segment in axis.segments):
                size = sum(segment.size * segment.repeat for segment in axis.segments)
                if axis.axis < tensor.ndim and tensor.shape[axis.axis] != size:
                    return False
        return True

    def _result(self, run: Sweep, folded: Tensors, found: Blocks, erase: bool) -> AlignedWeights:
        whole = {
            name: folded[name]
            if name in self.held and folded[name].shape == run.suspect[name].shape
            else run.suspect[name]
            for name in run.fitting
        }
        aligned = run.change.apply(self.symmetry, whole)
        if erase:
            self._erase(aligned, run)
        report = run.report()
        report.readable, report.blocks, report.doubts = self._readable(run), found.moved, list(found.doubts)
        kin = run.kinship()
        if kin > SOME and report.readable < LITTLE:
            report.doubts.append(
                f"{kin:.0%} of its channels are the reference's, and {report.readable:.0%} of what carries could be put in place: the rest was "
                "changed in a way that is not known"
            )
        return AlignedWeights(unfold(self.symmetry, aligned, self.state), report)

    def _as_seen(self, folded: Tensors) -> Tensors:
        """The suspect's tensors without what is held out of every input alike: the middle of a kernel, whatever the order of its channels."""
        seen = dict(folded)
        for name, held in self.held.items():
            tensor = folded.get(name)
            if tensor is not None and tensor.ndim == held.ndim > 2 and tensor.shape[2:] == held.shape[2:]:
                alike = held[:, :1]
                if (held == alike).all() and not held.all():
                    seen[name] = torch.where(alike.to(tensor.device), 0, tensor)
        return seen

    def with_random_carriers(
        self, carriers: list[Carrier], suspect: Mapping[str, torch.Tensor], seed: int
    ) -> tuple[Tensors, AlignedWeights]:
        """A state dict of the reference with random carriers, and the suspect aligned to it, with all else as it is."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.state.items()}
        decoy, generator = dict(self.state), torch.Generator().manual_seed(seed)
        for carrier in carriers:
            found = located(carrier, shapes)
            name = found.weight
            random = torch.randn(decoy[name].shape, generator=generator) * decoy[name].float().std()
            centre = carrier.centre(decoy[name])
            if centre is not None:
                random += centre.reshape(-1, *[1] * (random.ndim - 1)).float()
            decoy[name] = torch.where(held_out(carrier, found, shapes[name]), random, decoy[name])
        other = copy.copy(self)
        other.state = decoy
        other.anchors = other._without_carriers(fold(self.symmetry, decoy))
        return decoy, other.align(suspect)

    def _masks(self, run: Sweep) -> Iterator[tuple[str, torch.Tensor]]:
        """Which weights of every carrier are readable, `[rows, columns]`."""
        for name in self.held:
            shape = self.symmetry.shapes.get(name) or tuple(self.state[name].shape)
            rows, columns = torch.ones(shape[0], dtype=torch.bool), torch.ones(shape[1], dtype=torch.bool)
            # An axis that is not listed is that of the images, say, and stays as it is.
            for axis in self.symmetry.axes.get(name, ()):
                known = torch.cat([run.recognised(s.space, s.size).repeat_interleave(s.repeat) for s in axis.segments])
                if axis.axis == 0:
                    rows = rows & known
                elif axis.axis == 1:
                    columns = columns & known
            yield name, rows[:, None] & columns[None, :]

    def _erase(self, aligned: Tensors, run: Sweep) -> None:
        for name, mask in self._masks(run):
            if name not in aligned:
                continue
            tensor = aligned[name]
            # Not by a product: what stands behind a dead channel may be infinite by now.
            aligned[name] = torch.where(
                mask.reshape(*mask.shape, *[1] * (tensor.ndim - 2)).to(tensor.device), tensor, 0
            )

    def _readable(self, run: Sweep) -> float:
        shares = [(int(mask.sum()) * (name in run.fitting), mask.numel()) for name, mask in self._masks(run)]
        return sum(kept for kept, _ in shares) / max(1, sum(size for _, size in shares))


def held_out(carrier: Carrier, found: Found, shape: tuple[int, ...]) -> torch.Tensor:
    """Which weights of each row of a tensor the mark may lie in, `[1, in, height, width]` or `[1, in]`; in doubt all."""
    held = torch.zeros(1, *shape[1:], dtype=torch.bool)
    inputs = slice(2, None, 3) if carrier.every_third_input and not found.lost else slice(None)
    if found.middle:
        held[:, inputs, shape[2] // 2, shape[3] // 2] = True
    else:
        held[:, inputs] = True
    return held
