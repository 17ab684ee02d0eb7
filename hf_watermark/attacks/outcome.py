"""How the outcome of an attack is read: whether the model is still worth stealing, and which attacks belong together on a page."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

from .table import ENTRIES


# A model that keeps less than this share of its accuracy is worth nothing to a thief.
USABLE = 0.5
# What an attack can do, and how often it did, in words.
SURVIVED, REMOVED, RUINED = "survived", "removed", "model ruined"
TALLY = {SURVIVED: "survived", REMOVED: "removed the mark", RUINED: "ruined the model"}
# By the module of the attack, see `ENTRIES`.
KINDS: dict[str, tuple[str, ...]] = {
    "Noise and pruning": ("noise", "pruning", "fine_pruning", "width"),
    "Number formats": ("quantization", "onnx_export"),
    "Rewritten weights": ("symmetric", "batchnorm"),
    "Further training": ("finetuning", "lora", "regularization", "adversarial", "attention", "merging"),
    "Search for triggers": ("trigger_inversion",),
    "Filters before the model": ("preprocessing",),
    "Copies trained on its answers": ("distillation", "extraction"),
}
OTHER = "Others, and several in a row"
Item = TypeVar("Item")


def is_ruined(accuracy: float | None, clean_accuracy: float | None) -> bool:
    """
    Whether an attack cost so much that a mark that is left counts for nothing: the model is not worth stealing any more.

    Args:
        accuracy, clean_accuracy (`float`, *optional*):
            After the attack, and of the unmarked model of the same recipe, in [0, 1]. Where one is unknown, the model counts as usable, so that
            a removed mark counts as removed.
    """
    return accuracy is not None and clean_accuracy is not None and accuracy < USABLE * clean_accuracy


def ruined_rows(accuracies: Sequence[float | None], clean_accuracy: float | None = None) -> list[bool]:
    """[`is_ruined`] for a table of attacks. Harmless attacks are in it, so the best accuracy is at least that of the model before them."""
    best = max((known for known in (*accuracies, clean_accuracy) if known is not None), default=None)
    return [is_ruined(accuracy, best) for accuracy in accuracies]


def kind_of(attack: str | None) -> str:
    """The kind of an attack by its name in the table; a stack, and what is not in the table, is [`OTHER`]."""
    module = ENTRIES[attack].module if attack in ENTRIES else None
    return next((kind for kind, modules in KINDS.items() if module in modules), OTHER)


def by_kind(items: Iterable[tuple[str | None, Item]]) -> dict[str, list[Item]]:
    """Pairs of an attack's name and anything, grouped in the order of [`KINDS`]; empty kinds are left out."""
    groups: dict[str, list[Item]] = {kind: [] for kind in (*KINDS, OTHER)}
    for attack, item in items:
        groups[kind_of(attack)].append(item)
    return {kind: members for kind, members in groups.items() if members}


def tally(fates: Iterable[str]) -> str:
    """How many attacks met each fate: `3 survived, 1 ruined the model`."""
    counts = Counter(fates)
    return ", ".join(f"{counts[name]} {TALLY.get(name, name)}" for name in sorted(counts, key=[*TALLY, *counts].index))
