"""Soft-label watermarks (`usp`, `csp`): key-drawn signs in the small probabilities, which survive distillation."""

from .config import CSPConfig, USPConfig
from .detector import USPDetector, USPDetectorConfig, train_detector
from .embedding import CSPEmbedding, USPEmbedding
from .modeling import PerturbedOutputConfig, PerturbedOutputModel, PerturbedOutputModelForImageClassification
from .tracing import Accusation, issue_copies, recipient_keys, trace
from .trainer import CSPTrainer, USPTrainer
from .verifier import CSPVerifier, USPVerifier


__all__ = [
    "Accusation",
    "CSPConfig",
    "CSPEmbedding",
    "CSPTrainer",
    "CSPVerifier",
    "PerturbedOutputConfig",
    "PerturbedOutputModel",
    "PerturbedOutputModelForImageClassification",
    "USPConfig",
    "USPDetector",
    "USPDetectorConfig",
    "USPEmbedding",
    "USPTrainer",
    "USPVerifier",
    "issue_copies",
    "recipient_keys",
    "trace",
    "train_detector",
]
