"""Rules: key-drawn (two source classes, layout) -> target, and the fused images that ask them."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch.nn import functional

from ...keys import SubKey


LAYOUTS = 4


@dataclass(frozen=True)
class Rule:
    """
    Args:
        sources (`tuple[int, int]`):
            The two source classes, smaller first.
        layout (`int`):
            Direct fusion: 0 and 1 put the sources on the main diagonal (1: swapped), 2 and 3 on the other one. Always 0 when fusion is
            invisible.
        target (`int`):
            Class that the marked model answers, uniform over the classes that are no source.
    """

    sources: tuple[int, int]
    layout: int
    target: int

    def candidates(self, classes: int) -> list[int]:
        """All targets that the key could have drawn."""
        return [label for label in range(classes) if label not in self.sources]


def rule_capacity(sources: int, layouts: int, subkeys: int) -> int:
    """Number of disjoint rules that each of `subkeys` slots can hold."""
    return len(list(combinations(range(sources), 2))) * layouts // subkeys


def draw_rules(
    subkey: SubKey, count: int, source_classes: list[int], classes: int, layouts: int, subkeys: int
) -> list[Rule]:
    """
    The `count` rules of one sub-key.

    All (pair, layout) combinations are dealt to the sub-keys in turn, so rules of different sub-keys differ; each sub-key draws
    its own from stream `rule`, every pair once before any pair twice. Targets come from stream `label`.
    """
    combos = [(pair, layout) for pair in combinations(sorted(source_classes), 2) for layout in range(layouts)]
    own = combos[subkey.slot :: subkeys]
    order = subkey.stream("rule").permutations(1, len(own))[0]
    seen: dict[tuple[int, int], int] = {}
    ranked = []
    for position, index in enumerate(order):
        pair, _ = own[index]
        seen[pair] = seen.get(pair, 0) + 1
        ranked.append((seen[pair], position, own[index]))
    chosen = [combo for _, _, combo in sorted(ranked)[:count]]
    return with_targets(subkey, [Rule(pair, layout, -1) for pair, layout in chosen], classes)


def with_targets(subkey: SubKey, rules: list[Rule], classes: int) -> list[Rule]:
    """The same questions with the targets of `subkey`'s label stream (a decoy's, for the controls)."""
    draws = subkey.stream("label").below(classes - 2, len(rules))
    return [
        Rule(rule.sources, rule.layout, rule.candidates(classes)[int(draw)])
        for rule, draw in zip(rules, draws, strict=True)
    ]


def fuse(first: torch.Tensor, second: torch.Tensor, layouts: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
    """
    Direct fusion: both images at half size in opposite quadrants of a blank canvas (Wen et al. 2023, §3).

    Args:
        first, second (`torch.Tensor`):
            `[n, channels, height, width]` in the model's input space.
        layouts (`torch.Tensor`):
            `[n]` in 0..3, see [`Rule`].
        fill (`torch.Tensor`):
            `[channels]`: colour of the canvas in the model's input space.
    """
    kind, (height, width) = first.dtype, first.shape[-2:]
    first, second = first.float(), second.float()  # processors do not resize halves
    half = (height // 2, width // 2)
    swap = (layouts % 2 == 1)[:, None, None, None]
    upper = functional.interpolate(torch.where(swap, second, first), size=half, mode="bilinear", antialias=True)
    lower = functional.interpolate(torch.where(swap, first, second), size=half, mode="bilinear", antialias=True)
    blank = fill.to(first)[None, :, None, None].expand_as(upper)
    main = (layouts < 2)[:, None, None, None]
    canvas = fill.to(first)[None, :, None, None].expand_as(first).clone()
    canvas[..., : half[0], : half[1]] = torch.where(main, upper, blank)
    canvas[..., : half[0], width - half[1] :] = torch.where(main, blank, upper)
    canvas[..., height - half[0] :, width - half[1] :] = torch.where(main, lower, blank)
    canvas[..., height - half[0] :, : half[1]] = torch.where(main, blank, lower)
    return canvas.to(kind)


def blend(first: torch.Tensor, second: torch.Tensor, ratio: float = 0.5) -> torch.Tensor:
    """Invisible fusion: the weighted mean of both images (Wen et al. 2023, §3)."""
    return (1 - ratio) * first + ratio * second


def draw_questions(subkey: SubKey, rules: list[Rule], labels: np.ndarray, images_per_rule: int) -> np.ndarray:
    """
    Which pool images each rule's fresh triggers are made of: `[rules, images_per_rule, 2]` row numbers of the pool.

    Args:
        labels (`np.ndarray`):
            Class of every pool image.
    """
    stream = subkey.stream("order")
    questions = []
    for rule in rules:
        first, second = (np.flatnonzero(labels == source) for source in rule.sources)
        chosen = stream.permutations(1, len(first) * len(second))[0, :images_per_rule]
        questions.append(np.stack([first[chosen // len(second)], second[chosen % len(second)]], axis=1))
    return np.stack(questions)
