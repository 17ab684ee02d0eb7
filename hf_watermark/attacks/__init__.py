"""
Removal attacks: they know models and data, never watermarks.

An attack is a dataclass of options that is called with a model, and with data where it needs them:

```python
>>> from hf_watermark.attacks import FineTune, make_attack

>>> attacked = FineTune(learning_rate=0.05, epochs=3)(model, data)
>>> attacked = make_attack("magnitude_prune", amount=0.7)(model)
```
"""

from typing import TYPE_CHECKING

from ..package import on_first_use


_NAMES = {
    "ATTACKS": "table",
    "AdversarialFineTune": "adversarial",
    "AdversarialNeuronPrune": "fine_pruning",
    "Attack": "base",
    "AttentionDistill": "attention",
    "CastDtype": "quantization",
    "DataFreeExtract": "extraction",
    "Distill": "distillation",
    "DummyNeurons": "width",
    "FinePrune": "fine_pruning",
    "FineTune": "finetuning",
    "FlipBatchNormSigns": "batchnorm",
    "FoldBatchNorm": "symmetric",
    "Int4Quantize": "quantization",
    "Int8Quantize": "quantization",
    "Knockoff": "extraction",
    "LoraFineTune": "lora",
    "MagnitudePrune": "pruning",
    "Merge": "merging",
    "MergeSibling": "merging",
    "MixBottlenecks": "symmetric",
    "MixHeads": "symmetric",
    "NotApplicableError": "base",
    "OccludeFineTune": "adversarial",
    "OnnxRoundTrip": "onnx_export",
    "Permute": "symmetric",
    "PreprocessInput": "preprocessing",
    "PreprocessedModelForImageClassification": "preprocessing",
    "ReestimateBatchNorm": "batchnorm",
    "Regularize": "regularization",
    "Rescale": "symmetric",
    "ResetHead": "finetuning",
    "RotateResidual": "symmetric",
    "SoftLabelFineTune": "regularization",
    "Stack": "stacking",
    "StructuredPrune": "width",
    "TrainingAttack": "training",
    "Transfer": "finetuning",
    "TriggerUnlearn": "trigger_inversion",
    "UniformQuantize": "quantization",
    "WeightNoise": "noise",
    "WeightShift": "regularization",
    "full_battery": "battery",
    "make_attack": "table",
    "standard_battery": "battery",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .adversarial import AdversarialFineTune as AdversarialFineTune
    from .adversarial import OccludeFineTune as OccludeFineTune
    from .attention import AttentionDistill as AttentionDistill
    from .base import Attack as Attack
    from .base import NotApplicableError as NotApplicableError
    from .batchnorm import FlipBatchNormSigns as FlipBatchNormSigns
    from .batchnorm import ReestimateBatchNorm as ReestimateBatchNorm
    from .battery import full_battery as full_battery
    from .battery import standard_battery as standard_battery
    from .distillation import Distill as Distill
    from .extraction import DataFreeExtract as DataFreeExtract
    from .extraction import Knockoff as Knockoff
    from .fine_pruning import AdversarialNeuronPrune as AdversarialNeuronPrune
    from .fine_pruning import FinePrune as FinePrune
    from .finetuning import FineTune as FineTune
    from .finetuning import ResetHead as ResetHead
    from .finetuning import Transfer as Transfer
    from .lora import LoraFineTune as LoraFineTune
    from .merging import Merge as Merge
    from .merging import MergeSibling as MergeSibling
    from .noise import WeightNoise as WeightNoise
    from .onnx_export import OnnxRoundTrip as OnnxRoundTrip
    from .preprocessing import PreprocessedModelForImageClassification as PreprocessedModelForImageClassification
    from .preprocessing import PreprocessInput as PreprocessInput
    from .pruning import MagnitudePrune as MagnitudePrune
    from .quantization import CastDtype as CastDtype
    from .quantization import Int4Quantize as Int4Quantize
    from .quantization import Int8Quantize as Int8Quantize
    from .quantization import UniformQuantize as UniformQuantize
    from .regularization import Regularize as Regularize
    from .regularization import SoftLabelFineTune as SoftLabelFineTune
    from .regularization import WeightShift as WeightShift
    from .stacking import Stack as Stack
    from .symmetric import FoldBatchNorm as FoldBatchNorm
    from .symmetric import MixBottlenecks as MixBottlenecks
    from .symmetric import MixHeads as MixHeads
    from .symmetric import Permute as Permute
    from .symmetric import Rescale as Rescale
    from .symmetric import RotateResidual as RotateResidual
    from .table import ATTACKS as ATTACKS
    from .table import make_attack as make_attack
    from .training import TrainingAttack as TrainingAttack
    from .trigger_inversion import TriggerUnlearn as TriggerUnlearn
    from .width import DummyNeurons as DummyNeurons
    from .width import StructuredPrune as StructuredPrune
