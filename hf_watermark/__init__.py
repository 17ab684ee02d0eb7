"""Put an ownership mark into a vision model while fine-tuning it, and prove it later. Public names load on first use."""

from typing import TYPE_CHECKING

from .mapping import BUILT_IN, KINDS
from .package import VERSION, on_first_use, silence_imports


__version__ = VERSION

silence_imports()

_NAMES = {
    "AutoTrainer": "mapping",
    "AutoVerifier": "mapping",
    "AutoWatermarkConfig": "mapping",
    "Certificate": "methods.certified",
    "Endpoint": "suspects.endpoints",
    "Evidence": "evidence",
    "InvalidInput": "serialization",
    "Opening": "keys",
    "Owner": "keys",
    "SmoothedModel": "methods.certified",
    "SmoothedModelForImageClassification": "methods.certified",
    "Suspect": "suspects",
    "Verdict": "evidence",
    "Watermark": "marking",
    "WatermarkConfig": "configuration",
    "WatermarkKey": "keys",
    "WatermarkTrainer": "training.trainer",
    "mark_model": "marking",
    "plan_key": "marking",
    "register_method": "mapping",
    "stack_trainers": "training.trainer",
    "verify": "verifying",
    "verify_sequentially": "verifying",
    "wrap_timm": "backbones",
}
# Config, trainer and verifier of every method: `GreedyResidualsConfig` ...
for _entry in BUILT_IN.values():
    _NAMES |= {_entry.prefix + kind: _entry.module.removeprefix(f"{__name__}.") for kind in KINDS}

__all__ = sorted(["__version__", *_NAMES])  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .backbones import wrap_timm as wrap_timm
    from .configuration import WatermarkConfig as WatermarkConfig
    from .evidence import Evidence as Evidence
    from .evidence import Verdict as Verdict
    from .keys import Opening as Opening
    from .keys import Owner as Owner
    from .keys import WatermarkKey as WatermarkKey
    from .mapping import AutoTrainer as AutoTrainer
    from .mapping import AutoVerifier as AutoVerifier
    from .mapping import AutoWatermarkConfig as AutoWatermarkConfig
    from .mapping import register_method as register_method
    from .marking import Watermark as Watermark
    from .marking import mark_model as mark_model
    from .marking import plan_key as plan_key
    from .methods.certified import Certificate as Certificate
    from .methods.certified import CertifiedConfig as CertifiedConfig
    from .methods.certified import CertifiedEmbedding as CertifiedEmbedding
    from .methods.certified import CertifiedTrainer as CertifiedTrainer
    from .methods.certified import CertifiedVerifier as CertifiedVerifier
    from .methods.certified import SmoothedModel as SmoothedModel
    from .methods.certified import SmoothedModelForImageClassification as SmoothedModelForImageClassification
    from .methods.function_coupled import FunctionCoupledConfig as FunctionCoupledConfig
    from .methods.function_coupled import FunctionCoupledEmbedding as FunctionCoupledEmbedding
    from .methods.function_coupled import FunctionCoupledTrainer as FunctionCoupledTrainer
    from .methods.function_coupled import FunctionCoupledVerifier as FunctionCoupledVerifier
    from .methods.greedy_residuals import GreedyResidualsConfig as GreedyResidualsConfig
    from .methods.greedy_residuals import GreedyResidualsEmbedding as GreedyResidualsEmbedding
    from .methods.greedy_residuals import GreedyResidualsTrainer as GreedyResidualsTrainer
    from .methods.greedy_residuals import GreedyResidualsVerifier as GreedyResidualsVerifier
    from .methods.soft_label import CSPConfig as CSPConfig
    from .methods.soft_label import CSPEmbedding as CSPEmbedding
    from .methods.soft_label import CSPTrainer as CSPTrainer
    from .methods.soft_label import CSPVerifier as CSPVerifier
    from .methods.soft_label import USPConfig as USPConfig
    from .methods.soft_label import USPEmbedding as USPEmbedding
    from .methods.soft_label import USPTrainer as USPTrainer
    from .methods.soft_label import USPVerifier as USPVerifier
    from .methods.watermas import WaterMASConfig as WaterMASConfig
    from .methods.watermas import WaterMASEmbedding as WaterMASEmbedding
    from .methods.watermas import WaterMASTrainer as WaterMASTrainer
    from .methods.watermas import WaterMASVerifier as WaterMASVerifier
    from .serialization import InvalidInput as InvalidInput
    from .suspects import Suspect as Suspect
    from .suspects.endpoints import Endpoint as Endpoint
    from .training.trainer import WatermarkTrainer as WatermarkTrainer
    from .training.trainer import stack_trainers as stack_trainers
    from .verifying import verify as verify
    from .verifying import verify_sequentially as verify_sequentially
