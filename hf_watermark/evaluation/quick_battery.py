"""The fixed battery of `hf-watermark survival`, whose table goes into the statement and the card."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedModel

from ..attacks import (
    Attack,
    CastDtype,
    Distill,
    FineTune,
    FlipBatchNormSigns,
    Int8Quantize,
    MagnitudePrune,
    ReestimateBatchNorm,
    ResetHead,
    UniformQuantize,
    WeightNoise,
)
from ..attacks.outcome import RUINED, ruined_rows
from ..keys import WatermarkKey
from .hardware import hardware, versions
from .survival import Row, survival_table


SCHEMA = "hf-watermark/survival/v1"


def quick_battery(learning_rate: float | None = None, epochs: float = 1, seed: int = 0) -> dict[str, Attack]:
    """
    A few minutes of attacks by label, the same for everybody, so that cards can be compared.

    Args:
        learning_rate (`float`, *optional*):
            The rate that the model was trained with (AdamW). Without it, only the attacks that need no data.
        epochs (`float`, *optional*, defaults to 1):
            Passes of each fine-tuning; the distillation takes three times as many.
    """
    battery: dict[str, Attack] = {
        "weight noise 0.1": WeightNoise(0.1, seed=seed),
        "weight noise 0.3": WeightNoise(0.3, seed=seed),
        "prune 50 %": MagnitudePrune(0.5),
        "prune 80 %": MagnitudePrune(0.8),
        "bfloat16": CastDtype("bfloat16"),
        "int8 weights": Int8Quantize(),
        "4-bit weights": UniformQuantize(4),
        "BatchNorm sign flips": FlipBatchNormSigns(seed=seed),
    }
    if learning_rate is None:
        return battery
    tune: dict[str, Any] = {"epochs": epochs, "optimizer": "adamw", "seed": seed}
    return battery | {
        "BatchNorm re-estimated": ReestimateBatchNorm(seed=seed),
        "fine-tune, 0.1 of the training rate": FineTune(learning_rate=learning_rate / 10, **tune),
        "fine-tune, training rate": FineTune(learning_rate=learning_rate, **tune),
        "fine-tune, REFIT from 3 times the rate": FineTune(learning_rate=3 * learning_rate, schedule="refit", **tune),
        "reset head, retrain all": ResetHead(learning_rate=learning_rate, scope="all", **tune),
        "distillation": Distill(learning_rate=learning_rate, epochs=3 * epochs, seed=seed),
    }


def survival_document(
    model: PreTrainedModel,
    key: WatermarkKey,
    attacks: Mapping[str, Attack],
    data: Any,
    eval_data: Any,
    on_row: Callable[[Row], None] | None = None,
) -> dict[str, Any]:
    """
    Runs a battery and returns what `hf-watermark publish --survival` reads.

    Args:
        data, eval_data:
            The attacker's images, and images for the accuracy; `None` for either is allowed: attacks that need images are then left out, and
            accuracies stay unknown.
    """
    begin = time.perf_counter()
    rows = survival_table(model, key, attacks, data, eval_data, on_row)
    return {
        "schema": SCHEMA,
        "rows": rows,
        "hardware": hardware(),
        "versions": versions(),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def survival_markdown(rows: list[Row]) -> str:
    """The table as the card shows it, for people; what does not apply is left out."""
    lines = ["| attack | accuracy afterwards | log2 p | outcome |", "|---|---:|---:|---|"]
    for row, ruined in zip(rows, ruined_rows([row.get("accuracy") for row in rows]), strict=True):
        if row["verdict"] != "n/a":
            known = row.get("accuracy")
            shown = "n/a" if known is None else f"{100 * known:.2f} %"
            lines.append(
                f"| {row['attack']} | {shown} | {row['log2_p']:.0f} | {RUINED if ruined else row['verdict']} |"
            )
    return "\n".join(lines) + "\n"
