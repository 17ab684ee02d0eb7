"""What is left of a mark, and of the model, after each attack."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..attacks import Attack, NotApplicableError
from ..evidence import COMBINED, Evidence
from ..keys import WatermarkKey
from ..mapping import AutoVerifier
from ..serialization import InvalidInput
from ..verifying import verify


Row = dict[str, Any]


def accuracy(model: PreTrainedModel, data: Any, batch_size: int = 500) -> float:
    """Top-1 accuracy on a map-style data set of `{"pixel_values": [C, H, W], "labels": int}`."""
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(data), batch_size):
            batch = [data[row] for row in range(start, min(start + batch_size, len(data)))]
            images = torch.stack([example["pixel_values"] for example in batch]).to(model.device)
            labels = torch.tensor([int(example["labels"]) for example in batch])
            right += int((model(pixel_values=images).logits.argmax(dim=1).cpu() == labels).sum())
    return right / len(data)


def method_summary(evidence: Evidence) -> dict[str, Row]:
    """Per method: counts, log2 p, level and verdict; empty where nothing could be read."""
    return {
        method: {
            "matches": part.matches,
            "trials": part.trials,
            "log2_p": round(part.log2_p, 1),
            "level": str(part.level),
            "verdict": str(part.verdict),
        }
        for method, part in evidence.by_method.items()
    }


def read_mark(suspect: nn.Module, key: WatermarkKey, original: nn.Module, beacon: bytes | None = None) -> Evidence:
    """
    [`verify`] with the owner's original as reference, where a method of the key has a use for one. A suspect in which no method of the key can be read, another architecture for a mark in
    the weights, is one that the attack took the mark out of.
    """
    aligns = any(AutoVerifier.for_method(assignment.method).reads_coordinates for assignment in key.assignments)
    try:
        return verify(suspect, key, beacon=beacon, reference=original if aligns else None, own_reference=True)
    except InvalidInput as error:
        reason = str(error)[:500]
        return Evidence(COMBINED, 0, 0, 0.0, 0.0, "not tested", frozenset(), reason=reason, unread=reason)


def survival_row(
    label: str,
    attacked: PreTrainedModel,
    key: WatermarkKey,
    eval_data: Any,
    original: nn.Module,
    labels_kept: bool = True,
    evidence: Evidence | None = None,
) -> Row:
    """
    One line of a survival table.

    Args:
        labels_kept (`bool`):
            Whether the attacked model still answers the labels of `eval_data`; if not, its accuracy is left out.
        evidence ([`Evidence`], *optional*):
            What [`verify`] gave for this model, if that is known already.
    """
    evidence = evidence or read_mark(attacked, key, original)
    return {
        "attack": label,
        "accuracy": accuracy(attacked, eval_data) if labels_kept else None,
        "relative_distance": relative_distance(attacked, original),
        "log2_p": round(evidence.log2_p, 1),
        "level": str(evidence.level),
        "verdict": str(evidence.verdict),
        "methods": method_summary(evidence),
        **({"reason": evidence.reason} if evidence.unread else {}),
        "not_checked": [str(skipped) for skipped in evidence.skipped],
    }


def survival_table(
    model: PreTrainedModel,
    key: WatermarkKey,
    attacks: Mapping[str, Attack],
    data: Any,
    eval_data: Any,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """
    Runs every attack on `model` and verifies what comes out.

    Args:
        attacks (`Mapping[str, Attack]`):
            Attacks by label.
        data:
            The attacker's images.
        eval_data (*optional*):
            Test images for the accuracy beside the mark's survival; `None` leaves it out.
        on_row (`Callable`, *optional*):
            Called after each row, to save it or to draw it.
    """
    rows = []
    for label, attack in tqdm(attacks.items(), desc="attacks", disable=None):
        begin = time.perf_counter()
        try:
            attacked = attack(model, data)
        except (NotApplicableError, FloatingPointError, ImportError) as error:  # no such layer, diverged, no extra
            row: Row = {"attack": label, "verdict": "n/a", "reason": str(error), "methods": {}}
        else:
            known = eval_data is not None and attacked.num_labels == model.num_labels
            row = survival_row(label, attacked, key, eval_data, model, known)
            row["seconds"] = round(time.perf_counter() - begin, 1)
        row |= {"options": attack.options(), "budget": attack.budget(data)}
        rows.append(row)
        if on_row is not None:
            on_row(row)
    return rows


def relative_distance(attacked: nn.Module, original: nn.Module) -> float | None:
    """||theta' - theta|| / ||theta|| over parameters of equal name and shape; `None` for another architecture."""
    ours = dict(original.named_parameters())
    pairs = [(theirs, ours[name]) for name, theirs in attacked.named_parameters() if name in ours]
    pairs = [(theirs, own) for theirs, own in pairs if theirs.shape == own.shape]
    if len(pairs) < len(ours) / 2:
        return None
    with torch.no_grad():
        moved = sum(float((theirs.float() - own.float()).square().sum()) for theirs, own in pairs)
        size = sum(float(own.float().square().sum()) for _, own in pairs)
    return round((moved / size) ** 0.5, 4)
