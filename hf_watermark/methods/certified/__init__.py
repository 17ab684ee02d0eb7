"""Certified watermarks: key-drawn triggers that hold under parameter noise, with a proven radius (randomized smoothing)."""

from .certificate import RADII, Certificate, CertifiedRadius, attack_distances, certify
from .config import CertifiedConfig
from .embedding import CertifiedEmbedding
from .modeling import SmoothedConfig, SmoothedModel, SmoothedModelForImageClassification
from .trainer import CertifiedTrainer
from .verifier import CertifiedVerifier


__all__ = [
    "RADII",
    "Certificate",
    "CertifiedConfig",
    "CertifiedEmbedding",
    "CertifiedRadius",
    "CertifiedTrainer",
    "CertifiedVerifier",
    "SmoothedConfig",
    "SmoothedModel",
    "SmoothedModelForImageClassification",
    "attack_distances",
    "certify",
]
