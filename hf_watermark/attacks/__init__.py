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
from typing import Any

from .adversarial import AdversarialFineTune, OccludeFineTune
from .attention import AttentionDistill
from .base import Attack, NotApplicableError, TrainingAttack
from .batchnorm import FlipBatchNormSigns, ReestimateBatchNorm
from .battery import full_battery, standard_battery
from .distillation import Distill
from .extraction import DataFreeExtract, Knockoff
from .fine_pruning import AdversarialNeuronPrune, FinePrune
from .finetuning import FineTune, ResetHead, Transfer
from .lora import LoraFineTune
from .merging import Merge, MergeSibling
from .noise import WeightNoise
from .onnx_export import OnnxRoundTrip
from .preprocessing import PreprocessedModelForImageClassification, PreprocessInput
from .pruning import MagnitudePrune
from .quantization import CastDtype, Int4Quantize, Int8Quantize, UniformQuantize
from .regularization import Regularize, SoftLabelFineTune, WeightShift
from .stacking import Stack
from .symmetric import FoldBatchNorm, MixBottlenecks, MixHeads, Permute, Rescale, RotateResidual
from .trigger_inversion import TriggerUnlearn
from .width import DummyNeurons, StructuredPrune


__all__ = [
    "ATTACKS",
    "AdversarialFineTune",
    "AdversarialNeuronPrune",
    "Attack",
    "AttentionDistill",
    "CastDtype",
    "DataFreeExtract",
    "Distill",
    "DummyNeurons",
    "FinePrune",
    "FineTune",
    "FlipBatchNormSigns",
    "FoldBatchNorm",
    "Int4Quantize",
    "Int8Quantize",
    "Knockoff",
    "LoraFineTune",
    "MagnitudePrune",
    "Merge",
    "MergeSibling",
    "MixBottlenecks",
    "MixHeads",
    "NotApplicableError",
    "OccludeFineTune",
    "OnnxRoundTrip",
    "Permute",
    "PreprocessInput",
    "PreprocessedModelForImageClassification",
    "ReestimateBatchNorm",
    "Regularize",
    "Rescale",
    "ResetHead",
    "RotateResidual",
    "SoftLabelFineTune",
    "Stack",
    "StructuredPrune",
    "TrainingAttack",
    "Transfer",
    "TriggerUnlearn",
    "UniformQuantize",
    "WeightNoise",
    "WeightShift",
    "full_battery",
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
        Int4Quantize,
        OnnxRoundTrip,
        PreprocessInput,
        FinePrune,
        AdversarialNeuronPrune,
        TriggerUnlearn,
        AttentionDistill,
        AdversarialFineTune,
        OccludeFineTune,
        Regularize,
        WeightShift,
        SoftLabelFineTune,
        LoraFineTune,
        Merge,
        MergeSibling,
        Knockoff,
        DataFreeExtract,
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
