"""Certified watermarks: key-drawn triggers that hold under parameter noise, with a proven radius (randomized smoothing)."""

from .certificate import Certificate, CertifiedRadius, certify
from .config import CertifiedConfig
from .modeling import SmoothedConfig, SmoothedModel, SmoothedModelForImageClassification
from .trainer import CertifiedTrainer
from .verifier import CertifiedVerifier


__all__ = [
    "Certificate",
    "CertifiedConfig",
    "CertifiedRadius",
    "CertifiedTrainer",
    "CertifiedVerifier",
    "SmoothedConfig",
    "SmoothedModel",
    "SmoothedModelForImageClassification",
    "certify",
]
