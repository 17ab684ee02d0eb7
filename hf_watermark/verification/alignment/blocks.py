"""
Which block of a suspect is which of the reference's: a thief may put in blocks that do nothing, leave blocks out, or number them otherwise.

Blocks are told apart by what their anchors read from a stream that is aligned already; carriers are never compared with anything. Of several
blocks that look alike, the one that writes more is meant: who copies a block without changing an answer must silence the copy.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment

from ...backbones.filling import shapes_in
from ...backbones.names import Renamed, Source, best_spelling
from ...backbones.symmetry import Symmetry, fold
from ...serialization import InvalidInput
from .fitting import unit_rows
from .sweep import Sweep, Tensors


# Surplus blocks of one stack that are looked for where the suspect spells its names otherwise than the reference.
MOST_SURPLUS = 8
# Rows of one tensor that are compared.
ROWS = 128
# A block is recognised when its resemblance leaves the usual one behind by this share of what is left up to 1, alike ones by half of the best.
RECOGNISED, ALIKE = 0.2, 0.6


@dataclass(frozen=True)
class Stack:
    """
    Blocks of one module list.

    Args:
        prefix (`str`):
            What stands before the number, `"vit.layers."`.
        blocks (`dict[int, frozenset[str]]`):
            What stands behind it, by number: `{0: {".mlp.fc1.weight", ...}, ...}`.
    """

    prefix: str
    blocks: dict[int, frozenset[str]]


@dataclass
class Blocks:
    """
    A suspect's tensors under the reference's names, with its blocks at the places where their contents belong.

    Attributes:
        sources (`dict[str, Source]`): Names in the suspect by names of the reference.
        moved (`dict[str, str]`): What was found, by stack, in words.
        doubts (`list[str]`): Why a mark may be there that is not seen.
    """

    sources: dict[str, Source]
    moved: dict[str, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)


def stacks_of(names: Sequence[str]) -> list[Stack]:
    """All module lists, outer ones first."""
    found: dict[str, dict[int, set[str]]] = {}
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts[:-1]):
            if part.isdecimal() and part == str(int(part)):
                prefix = ".".join(parts[:place]) + "." * (place > 0)
                rest = "".join(f".{item}" for item in parts[place + 1 :])
                found.setdefault(prefix, {}).setdefault(int(part), set()).add(rest)
    stacks = [
        Stack(prefix, {number: frozenset(rest) for number, rest in sorted(blocks.items())})
        for prefix, blocks in found.items()
    ]
    return sorted(stacks, key=lambda stack: stack.prefix.count("."))


def spelled_with_surplus(names: Sequence[str], wanted: Sequence[str]) -> dict[str, Source]:
    """[`best_spelling`], with blocks beyond the reference's under names that continue its numbers."""
    sources = best_spelling(names, wanted)
    used = {name for source in sources.values() for name in source.names}
    if not sources or len(used) == len(set(names)):
        return sources
    further: dict[str, None] = {}
    for stack in stacks_of(wanted):
        shapes_of_blocks = set(stack.blocks.values())
        first = max(stack.blocks) + 1
        for number in range(first, first + MOST_SURPLUS):
            further |= {f"{stack.prefix}{number}{rest}": None for block in shapes_of_blocks for rest in block}
    known = set(wanted)
    found = best_spelling(names, [*wanted, *(name for name in further if name not in known)])
    # The same spelling, or it says nothing about these.
    if all(found.get(name) == source for name, source in sources.items()):
        return found
    return sources


class BlockMatching:
    """
    Which block of a suspect is which of the reference's.

    Args:
        symmetry, anchors: As in [`Sweep`].
        state: The reference's state dict, of which names and shapes are used.
        suspect (`Mapping[str, torch.Tensor]`): The suspect's tensors, see [`~backbones.names.Renamed`], under the names of [`spelled_with_surplus`].
        carriers (`Sequence[str]`): Names of the carriers in the reference.
    """

    def __init__(
        self,
        symmetry: Symmetry,
        anchors: Tensors,
        state: Mapping[str, torch.Tensor],
        suspect: Renamed,
        carriers: Sequence[str],
    ):
        self.symmetry, self.anchors, self.state, self.suspect = symmetry, anchors, state, suspect
        self.carriers = list(carriers)
        shapes = shapes_in(suspect.tensors)
        self.shapes = {name: source.shape(shapes) for name, source in suspect.sources.items()}
        floats = [name for name in state if state[name].is_floating_point()]
        self.own = {stack.prefix: stack for stack in stacks_of(floats)}
        self.theirs = {stack.prefix: stack for stack in stacks_of(list(suspect.sources))}
        self.numbers: dict[str, dict[int, int]] = {}
        # What may be written into the layer in front of it.
        parts = ("weight", "bias", "running_mean", "running_var")
        self.spare = {f"{item.norm}.{part}" for item in symmetry.net.folds for part in parts}
        self.spare |= {f"{item.layer}.bias" for item in symmetry.net.folds} | set(symmetry.scalers)

    def _needed(self, prefix: str, number: int) -> frozenset[str]:
        """The tensors of a block that no other one can stand for."""
        block = self.own[prefix].blocks[number]
        return frozenset(rest for rest in block if f"{prefix}{number}{rest}" not in self.spare)

    def differing(self) -> list[str]:
        """Stacks whose blocks are not as many, or not of the kinds, that the reference's are."""
        found: list[str] = []
        for prefix, stack in self.own.items():
            needed = {number for number in stack.blocks if self._needed(prefix, number)}
            same = needed <= set(self._blocks(prefix)) <= set(stack.blocks)
            if not same and not any(map(prefix.startswith, found)):
                found.append(prefix)
        return found

    def of_one_kind(self) -> list[str]:
        """Stacks of several blocks of one kind, those of most first; none inside of another one."""
        alike = {}
        for prefix, stack in self.own.items():
            kinds = Counter(
                frozenset((rest, tuple(self.state[f"{prefix}{number}{rest}"].shape)) for rest in block)
                for number, block in stack.blocks.items()
            )
            alike[prefix] = max(kinds.values())
        found: list[str] = []
        for prefix in sorted(alike, key=lambda prefix: -alike[prefix]):
            apart = not any(prefix.startswith(other) or other.startswith(prefix) for other in found)
            if alike[prefix] > 1 and apart:
                found.append(prefix)
        return found

    def _blocks(self, prefix: str) -> dict[int, frozenset[str]]:
        stack = self.theirs.get(prefix)
        return {} if stack is None else stack.blocks

    def unmoved(self) -> Blocks:
        """Every block where its name says."""
        return Blocks({name: source for name, source in self.suspect.sources.items() if name in self.state})

    def match(self, prefixes: Sequence[str]) -> Blocks:
        """Puts the blocks of these stacks where their contents belong; a block that none resembles is left out."""
        result = Blocks(
            {
                name: source
                for name, source in self.suspect.sources.items()
                if name in self.state and not any(map(name.startswith, prefixes))
            }
        )
        self._by_kind(prefixes, result)
        for prefix in prefixes:
            self._by_contents(prefix, result)
        return result

    def _by_kind(self, prefixes: Sequence[str], result: Blocks) -> None:
        """Blocks of which both sides have one of a kind, told by its names and shapes."""
        for prefix in prefixes:
            self.numbers[prefix] = {}
            mine, theirs = self.own[prefix].blocks, self._blocks(prefix)
            for number in mine:
                like = [other for other in theirs if self._fits(prefix, number, other, exact=True)]
                if len(like) == 1 and sum(self._fits(prefix, one, like[0], exact=True) for one in mine) == 1:
                    self._place(prefix, number, like[0], result)

    def _fits(self, prefix: str, number: int, other: int, exact: bool = False) -> bool:
        """Whether a suspect's block has most of what the reference's has; `exact`: all, and as many channels."""
        needed, theirs = self._needed(prefix, number), self.theirs[prefix].blocks[other]
        if len(needed & theirs) < (len(needed) if exact else len(needed) / 2):
            return False
        both = self.own[prefix].blocks[number] & theirs
        for rest in both:
            wanted, shape = tuple(self.state[f"{prefix}{number}{rest}"].shape), self.shapes[f"{prefix}{other}{rest}"]
            if len(wanted) != len(shape) or (exact and wanted != shape):
                return False
        return True

    def _renamed(self, prefix: str, number: int, other: int) -> dict[str, Source]:
        """The tensors of a suspect's block under the names of the reference's."""
        both = self.own[prefix].blocks[number] & self.theirs[prefix].blocks[other]
        return {f"{prefix}{number}{rest}": self.suspect.sources[f"{prefix}{other}{rest}"] for rest in sorted(both)}

    def _place(self, prefix: str, number: int, other: int, result: Blocks) -> None:
        self.numbers[prefix][number] = other
        result.sources |= self._renamed(prefix, number, other)

    def _by_contents(self, prefix: str, result: Blocks) -> None:
        taken = set(self.numbers[prefix].values())
        mine = [number for number in self.own[prefix].blocks if number not in self.numbers[prefix]]
        theirs = [number for number in self._blocks(prefix) if number not in taken]
        if not mine:
            self._say(prefix, result, [])
            return
        run = self._partial(result)
        scores = torch.zeros(len(mine), len(theirs))
        written = torch.zeros(len(mine), len(theirs))
        for row, number in enumerate(mine):
            for column, other in enumerate(theirs):
                if self._fits(prefix, number, other):
                    scores[row, column], written[row, column] = self._likeness(run, prefix, number, other)
        chosen, doubtful = assigned(scores, written)
        for row, column in chosen.items():
            self._place(prefix, mine[row], theirs[column], result)
        if not chosen:
            # Nothing is recognised, so names are as good as anything.
            for number in set(mine) & set(theirs):
                if self._fits(prefix, number, number):
                    self._place(prefix, number, number, result)
            if len(theirs) != len(mine):
                result.doubts.append(
                    f"the suspect has {len(self._blocks(prefix))} blocks {prefix}* where the reference has {len(self.own[prefix].blocks)}, and "
                    "their contents do not say which are which"
                )
        self._say(prefix, result, [mine[row] for row in doubtful])

    def _say(self, prefix: str, result: Blocks, doubtful: Sequence[int]) -> None:
        numbers = self.numbers[prefix]
        there, own = len(self._blocks(prefix)), len(self.own[prefix].blocks)
        moved = sum(number != other for number, other in numbers.items())
        if there > own:
            result.moved[prefix] = f"{there - own} blocks added"
        elif len(numbers) < own:
            result.moved[prefix] = f"{own - len(numbers)} blocks missing"
        elif moved:
            result.moved[prefix] = "blocks renumbered"
        if doubtful:
            result.doubts.append(
                f"several blocks of the suspect look like one of the reference's ({prefix}{doubtful[0]}), and which one is meant cannot be told"
            )

    def _partial(self, result: Blocks) -> Sweep:
        """The alignment of what is known so far."""
        floats = {
            name: self.suspect.of(source)
            for name, source in result.sources.items()
            if self.state[name].is_floating_point()
        }
        run = Sweep(self.symmetry, self.anchors, folded_as_given(self.symmetry, floats))
        run.fit(sweeps=1)
        return run

    def _likeness(self, run: Sweep, prefix: str, number: int, other: int) -> tuple[float, float]:
        """How much the anchors of a suspect's block resemble those of the reference's, and how much its carriers write."""
        tensors = {name: self.suspect.of(source) for name, source in self._renamed(prefix, number, other).items()}
        folded = {
            name: item
            for name, item in folded_as_given(self.symmetry, tensors).items()
            if name.startswith(f"{prefix}{number}.")
        }
        trial = Sweep(self.symmetry, self.anchors, folded, like=run)
        rows = [
            best_rows(feature.suspect, feature.reference)
            for space in trial.unknown()
            for feature in trial.features(space, readers=False)
            if min(feature.reference.shape) > 1
        ]
        same = [likeness for name in folded if (likeness := trial.agreement(name)) is not None]
        norms = [float(folded[name].norm()) for name in self.carriers if name in folded]
        values = [*rows, *same]
        return sum(values) / len(values) if values else 0.0, sum(norms)


def folded_as_given(symmetry: Symmetry, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """
    [`fold`] of a stranger's tensors.

    Raises:
        [`~serialization.InvalidInput`]: when a weight and a normalisation do not go together.
    """
    try:
        return fold(symmetry, tensors)
    except (RuntimeError, IndexError) as error:  # torch's
        raise InvalidInput(
            f"the suspect's tensors do not fit each other as the reference's do: {error}; give them as its library stores them"
        ) from None


def best_rows(suspect: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean resemblance of the reference's rows to the suspect's that they resemble most."""
    if suspect.shape[1] != reference.shape[1]:
        return 0.0
    some = reference[:: max(1, len(reference) // ROWS)]
    cosine = unit_rows(some) @ unit_rows(suspect).mT
    return float(cosine.abs().amax(dim=1).mean())


def assigned(scores: torch.Tensor, written: torch.Tensor) -> tuple[dict[int, int], list[int]]:
    """
    Pairs of blocks that stand out.

    Args:
        scores (`torch.Tensor`): `[reference, suspect]`, 1 where blocks are the same.
        written (`torch.Tensor`): As large as what the suspect's block writes.

    Returns:
        Suspect's block by the reference's, and the reference's blocks that several resemble.
    """
    if not scores.numel():
        return {}, []
    scores, written = scores.nan_to_num(0.0), written.nan_to_num(0.0, 1e30)
    usual = float(scores.median())
    best = scores.amax(dim=1, keepdim=True)
    known = (best - usual) > RECOGNISED * (1 - usual)
    alike = known & (scores - usual > ALIKE * (best - usual))
    # Among blocks that are alike the one that writes most.
    share = written / written.amax(dim=1, keepdim=True).clamp_min(1e-30)
    worth = torch.where(alike, 2 + share + 0.5 * scores, scores)
    rows, columns = linear_sum_assignment(worth.numpy(), maximize=True)
    pairs = {int(row): int(column) for row, column in zip(rows, columns, strict=True) if alike[row, column]}
    taken = set(pairs.values())
    doubtful = [
        row
        for row, column in pairs.items()
        if any(
            bool(alike[row, other]) and other not in taken and float(share[row, other]) > 1e-3
            for other in range(scores.shape[1])
            if other != column
        )
    ]
    return pairs, doubtful
