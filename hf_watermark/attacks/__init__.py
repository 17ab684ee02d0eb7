"""
Removal attacks: they know models and data, never watermarks.

An attack is a dataclass of options that is called with a model, and with data where it needs them:

```python
>>> from hf_watermark.attacks import FineTune, make_attack

>>> attacked = FineTune(learning_rate=0.05, epochs=3)(model, data)
>>> attacked = make_attack("magnitude_prune", amount=0.7)(model)
```
"""

from dataclasses import fields
from typing import Any, Literal

from .base import Attack, NotApplicableError, TrainingAttack
from .batchnorm import FlipBatchNormSigns, ReestimateBatchNorm
from .distillation import Distill
from .finetuning import FineTune, ResetHead, Transfer
from .noise import WeightNoise
from .pruning import MagnitudePrune
from .quantization import CastDtype, Int8Quantize, UniformQuantize
from .symmetric import FoldBatchNorm, MixBottlenecks, MixHeads, Permute, Rescale, RotateResidual
from .width import DummyNeurons, StructuredPrune


__all__ = [
    "ATTACKS",
    "Attack",
    "CastDtype",
    "Distill",
    "DummyNeurons",
    "FineTune",
    "FlipBatchNormSigns",
    "FoldBatchNorm",
    "Int8Quantize",
    "MagnitudePrune",
    "MixBottlenecks",
    "MixHeads",
    "NotApplicableError",
    "Permute",
    "ReestimateBatchNorm",
    "Rescale",
    "ResetHead",
    "RotateResidual",
    "StructuredPrune",
    "TrainingAttack",
    "Transfer",
    "UniformQuantize",
    "WeightNoise",
    "make_attack",
    "standard_battery",
]

ATTACKS: dict[str, type[Attack]] = {
    attack.name: attack
    for attack in (
        WeightNoise,
        MagnitudePrune,
        UniformQuantize,
        Int8Quantize,
        CastDtype,
        FineTune,
        ResetHead,
        Transfer,
        Distill,
        ReestimateBatchNorm,
        FlipBatchNormSigns,
        FoldBatchNorm,
        Permute,
        Rescale,
        RotateResidual,
        MixHeads,
        MixBottlenecks,
        DummyNeurons,
        StructuredPrune,
    )
}


def make_attack(name: str, **options: Any) -> Attack:
    """
    Args:
        name (`str`):
            A key of `ATTACKS`.
        options:
            Fields of that attack.

    Raises:
        `ValueError`: if there is no such attack, or an option is unknown or out of range.
    """
    if name not in ATTACKS:
        raise ValueError(f"There is no attack {name!r}; choose one of: {', '.join(ATTACKS)}.")
    known = [field.name for field in fields(ATTACKS[name]) if field.init]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"The attack {name!r} has no option {unknown[0]!r}; its options are: {', '.join(known)}.")
    return ATTACKS[name](**options)


def standard_battery(
    learning_rate: float,
    epochs: float = 3,
    distill_epochs: float = 30,
    batch_size: int = 128,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Attack]:
    """
    Every attack that a robustness table must show, by label. The two BatchNorm attacks raise [`NotApplicableError`] for
    a model without BatchNorm.

    Args:
        learning_rate (`float`):
            The rate that the model under attack was trained with: the top of the fine-tuning grid. Only
            `finetune_refit` goes above it, three times, and decays.
        epochs (`float`, *optional*, defaults to 3):
            Epochs of each fine-tuning attack.
        distill_epochs (`float`, *optional*, defaults to 30):
            Epochs of each distillation, which starts from nothing and so needs more.
        batch_size (`int`, *optional*, defaults to 128):
            Examples per step and process.
        optimizer (`str`, *optional*, defaults to `"sgd"`):
            The optimizer that `learning_rate` belongs to: `"sgd"` (momentum 0.9) or `"adamw"`.
        seed (`int`, *optional*, defaults to 0):
            Seed of every attack.
        progress (`bool`, *optional*, defaults to `False`):
            Show progress bars of training.
    """
    run: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "progress": progress}
    tune: dict[str, Any] = {"learning_rate": learning_rate, "epochs": epochs, "optimizer": optimizer, **run}
    distill: dict[str, Any] = {"epochs": distill_epochs, **run}
    pruned_tune = {"finetune_epochs": epochs, "learning_rate": learning_rate / 10, "optimizer": optimizer, **run}
    return {
        "noise_0.1": WeightNoise(0.1, seed=seed),
        "noise_0.3": WeightNoise(0.3, seed=seed),
        "prune_global_50": MagnitudePrune(0.5),
        "prune_global_90": MagnitudePrune(0.9),
        "prune_layer_50": MagnitudePrune(0.5, scope="layer"),
        "prune_layer_90": MagnitudePrune(0.9, scope="layer"),
        "prune_global_90_finetune": MagnitudePrune(0.9, **pruned_tune),
        "prune_layer_90_finetune": MagnitudePrune(0.9, scope="layer", **pruned_tune),
        "quantize_8bit": UniformQuantize(8),
        "quantize_4bit": UniformQuantize(4),
        "quantize_3bit": UniformQuantize(3),
        "quantize_2bit": UniformQuantize(2),
        "int8": Int8Quantize(),
        "cast_bfloat16": CastDtype("bfloat16"),
        "cast_float16": CastDtype("float16"),
        "finetune_lr_0.01x": FineTune(**{**tune, "learning_rate": learning_rate / 100}),
        "finetune_lr_0.1x": FineTune(**{**tune, "learning_rate": learning_rate / 10}),
        "finetune_lr_1x": FineTune(**tune),
        "finetune_refit_3x": FineTune(**{**tune, "learning_rate": 3 * learning_rate}, schedule="refit"),
        "finetune_last_layer": FineTune(**tune, scope="last"),
        "reset_head_last": ResetHead(**tune, scope="last"),
        "reset_head_all": ResetHead(**tune, scope="all"),
        "transfer": Transfer(**tune),
        "distill_soft_same": Distill(mode="soft", student="same", **distill),
        "distill_soft_other": Distill(mode="soft", student="other", **distill),
        "distill_hard_same": Distill(mode="hard", student="same", **distill),
        "distill_hard_other": Distill(mode="hard", student="other", **distill),
        "reestimate_batchnorm": ReestimateBatchNorm(batch_size=batch_size, seed=seed),
        "flip_batchnorm_signs": FlipBatchNormSigns(seed=seed),
    }
