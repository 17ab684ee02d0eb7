"""Soft-label watermarks (`usp`, `csp`): key-drawn signs in the small probabilities, which survive distillation."""

from typing import TYPE_CHECKING

from ...package import on_first_use


_NAMES = {
    "Accusation": "tracing",
    "CSPConfig": "config",
    "CSPEmbedding": "embedding",
    "CSPTrainer": "trainer",
    "CSPVerifier": "verifier",
    "PerturbedOutputConfig": "modeling",
    "PerturbedOutputModel": "modeling",
    "PerturbedOutputModelForImageClassification": "modeling",
    "USPConfig": "config",
    "USPDetector": "detector",
    "USPDetectorConfig": "detector",
    "USPEmbedding": "embedding",
    "USPTrainer": "trainer",
    "USPVerifier": "verifier",
    "issue_copies": "tracing",
    "recipient_keys": "tracing",
    "trace": "tracing",
    "train_detector": "detector",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .config import CSPConfig as CSPConfig
    from .config import USPConfig as USPConfig
    from .detector import USPDetector as USPDetector
    from .detector import USPDetectorConfig as USPDetectorConfig
    from .detector import train_detector as train_detector
    from .embedding import CSPEmbedding as CSPEmbedding
    from .embedding import USPEmbedding as USPEmbedding
    from .modeling import PerturbedOutputConfig as PerturbedOutputConfig
    from .modeling import PerturbedOutputModel as PerturbedOutputModel
    from .modeling import PerturbedOutputModelForImageClassification as PerturbedOutputModelForImageClassification
    from .tracing import Accusation as Accusation
    from .tracing import issue_copies as issue_copies
    from .tracing import recipient_keys as recipient_keys
    from .tracing import trace as trace
    from .trainer import CSPTrainer as CSPTrainer
    from .trainer import USPTrainer as USPTrainer
    from .verifier import CSPVerifier as CSPVerifier
    from .verifier import USPVerifier as USPVerifier
