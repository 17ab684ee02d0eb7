"""
A small model of every file of timm, and what alignment brings back of its mark: the section `families` of `structures.py`.

The smallest model that timm lists, or a narrower one of its class, has random weights; greedy residuals are written into it. Then every channel is permuted
and rescaled where that is free, or a quarter of the units that may be are split and all normalisations folded away. A row holds the bits that are right
before, after, and aligned, and how much the answers changed (they must not).
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from alignment import Results, Row, lively
from narrower import BUILT, SMALLER, small_model
from torch import nn

from hf_watermark import Evidence, Owner, mark_model, verify
from hf_watermark.attacks.symmetric import random_factors
from hf_watermark.backbones import images_taken, logits_of
from hf_watermark.backbones.symmetry import Change, Moved, Symmetry, change_stored, fold, symmetry_of, unfold
from hf_watermark.suspects import Suspect


ANY_BUDGET = 1e9
# Models of more parameters are not aligned here.
MOST_PARAMETERS = 60_000_000
State = dict[str, torch.Tensor]


def smallest_models(coverage: Path) -> dict[str, str]:
    """Of every file of timm the smallest model that has a layout, by the table of `coverage.py`."""
    rows = json.loads(coverage.read_text())["timm"]
    found: dict[str, tuple[int, str]] = {}
    for name, row in rows.items():
        if "carriers" in row:
            found[row["file"]] = min(found.get(row["file"], (math.inf, "")), (row["parameters"], name))
    return {
        file: name
        for file, (size, name) in sorted(found.items(), key=lambda item: item[1])
        if size <= MOST_PARAMETERS or file in {*SMALLER, *BUILT}
    }


def transformed(symmetry: Symmetry, state: State) -> State:
    """Every channel at another place, and under another factor where that is free."""
    generator = torch.Generator().manual_seed(1)
    change = Change()
    for number, space in enumerate(symmetry.spaces):
        if space.kind in ("permutation", "orthogonal", "linear"):
            change.spaces[number] = Moved.permutation(torch.randperm(space.size, generator=generator))
    moved = change_stored(change, symmetry, state)
    factors = Change(factors=random_factors(symmetry, 1.0, generator))
    return change_stored(factors, symmetry, moved)


def split_units(symmetry: Symmetry, state: State) -> State:
    """
    A quarter more units in every space that allows it: the copy of a unit has its rows, and both have half of its columns.

    Raises:
        `ValueError`: where none does.
    """
    change = Change()
    for number, space in enumerate(symmetry.spaces):
        if space.kind == "permutation" and space.size >= 4 and _may_grow(symmetry, number):
            extra = torch.arange(0, space.size, 4)
            order = torch.cat([torch.arange(space.size), extra])
            change.spaces[number] = Moved(order, order, torch.arange(len(order)))
    if not change.spaces:
        raise ValueError("every unit is read channel by channel, normalised, or fixed: none can be split alone")
    folded = change.apply(symmetry, fold(symmetry, state))
    for number, moved in change.spaces.items():
        assert isinstance(moved, Moved)
        double = torch.zeros(len(moved.order))
        double[torch.arange(0, symmetry.spaces[number].size, 4)] = 1
        double[symmetry.spaces[number].size :] = 1
        for name, axis in symmetry.touching(number):
            if axis.flow == "in" and name in folded:
                shape = [-1 if place == axis.axis else 1 for place in range(folded[name].ndim)]
                folded[name] = folded[name] * torch.where(double > 0, 0.5, 1.0).reshape(shape)
    return folded


def _may_grow(symmetry: Symmetry, number: int) -> bool:
    """Whether all that touches a space holds nothing else on that axis, and no layer or normalisation reads it channel by channel."""
    if symmetry.spaces[number].normed:
        return False
    for name, axis in symmetry.touching(number):
        both = [other for other in symmetry.axes[name] if other.axis == axis.axis]
        if len(axis.segments) != 1 or axis.segments[0].repeat != 1 or len(both) > 1:
            return False
    return True


def families(options: argparse.Namespace, results: Results) -> None:
    smallest = smallest_models(options.coverage)
    for file, name in smallest.items():
        if options.models and file not in options.models:
            continue
        label, build = small_model(file, name)
        results.row("families", file, lambda label=label, build=build: {"model": label} | family_row(build))
    summarise(results, files_of_timm(options.coverage))


def summarise(results: Results, files: set[str]) -> None:
    """What all rows say together, and which files have none."""
    found = results.record["families"]
    rows = [row for label, row in found.items() if label != "all"]
    summary: Row = {"files": len(rows), "files of timm": len(files), "not measured": sorted(files - set(found))}
    for label in ("moved", "split"):
        shares = [row[label]["aligned"] for row in rows if "aligned" in row.get(label, {})]
        summary |= {
            f"{label}, measured": len(shares),
            f"{label}, all bits back": sum(share == 1.0 for share in shares),
            f"{label}, 98 % of the bits back": sum(share >= 0.98 for share in shares),
        }
    results.record["families"].pop("all", None)
    results.row("families", "all", lambda: summary)


def files_of_timm(coverage: Path) -> set[str]:
    return {row["file"] for row in json.loads(coverage.read_text())["timm"].values()}


def family_row(build: Callable[[], nn.Module]) -> Row:
    begin = time.perf_counter()
    try:
        torch.manual_seed(0)
        model = lively(build())
        config = {"method": "greedy_residuals", "subkeys": 1, "bits": 128, "group_size": 16}
        marked, key = mark_model(model, config, Owner.create(), budget=ANY_BUDGET)
        symmetry = symmetry_of(marked, images_taken(marked))
    except Exception as error:  # what an exporter raises can be anything
        return {"reason": f"{type(error).__name__}: {error}"[:200]}
    state = marked.state_dict()
    row: Row = {"before": share(verify(marked, key)), "free": free_kinds(symmetry)}
    for label, change in (("moved", transformed), ("split", split_units)):
        try:
            other = change(symmetry, state)
            if label == "moved":
                row["answers"] = change_of_answers(marked, other)
            else:
                other = {n: t for n, t in unfolded_freely(symmetry, other, state).items()}
            suspect = as_suspect(other)
            found = verify(suspect, key, reference=model)
            read = {"aligned": share(found)} if found.trials else {}
            row[label] = {"direct": share(verify(suspect, key))} | read | report(found)
        except Exception as error:
            row[label] = {"reason": f"{type(error).__name__}: {error}"[:200]}
    return row | {"seconds": round(time.perf_counter() - begin, 1)}


def free_kinds(symmetry: Symmetry) -> dict[str, int]:
    """Channels by the kind of their space."""
    counts: dict[str, int] = {}
    for space in symmetry.spaces:
        counts[space.kind] = counts.get(space.kind, 0) + space.size
    return counts


@torch.no_grad()
def change_of_answers(model: nn.Module, state: State) -> float:
    """Largest change of an answer against the largest answer: what was moved must leave it as it is."""
    images = torch.randn(images_taken(model).shape, generator=torch.Generator().manual_seed(0))
    wanted = logits_of(model.eval()(images))
    moved = copy.deepcopy(model)
    moved.load_state_dict(state)
    return float(f"{float((logits_of(moved(images)) - wanted).abs().max() / wanted.abs().max()):.2g}")


def unfolded_freely(symmetry: Symmetry, folded: State, like: State) -> State:
    """[`unfold`] for tensors of other sizes: the norms are left out, as they are when a file is exported with its norms folded."""
    whole = unfold(symmetry, folded, like)
    for item in symmetry.net.folds:
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            whole.pop(f"{item.norm}.{part}", None)
    return {name: tensor for name, tensor in whole.items() if name not in folded} | folded


def share(evidence: Evidence) -> float:
    return round(evidence.rate, 4)


def report(evidence: Evidence) -> Row:
    kept = evidence.details.get("alignment", {})
    row: Row = {"bits": evidence.trials, "verdict": str(evidence.verdict)}
    if not evidence.trials:
        row["reason"] = (evidence.unread or "")[:200]
    return row | {name: kept[name] for name in ("carriers_readable", "warnings") if name in kept}


def as_suspect(state: State) -> Suspect:
    return Suspect("tensors", dict(state), {name: tuple(tensor.shape) for name, tensor in state.items()})
