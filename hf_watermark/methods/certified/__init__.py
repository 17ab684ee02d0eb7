"""Certified watermarks: key-drawn triggers that hold under parameter noise, with a proven radius (randomized smoothing)."""

from typing import TYPE_CHECKING

from ...package import on_first_use


_NAMES = {
    "Certificate": "certificate",
    "CertifiedConfig": "config",
    "CertifiedEmbedding": "embedding",
    "CertifiedRadius": "certificate",
    "CertifiedTrainer": "trainer",
    "CertifiedVerifier": "verifier",
    "RADII": "certificate",
    "SmoothedConfig": "modeling",
    "SmoothedModel": "modeling",
    "SmoothedModelForImageClassification": "modeling",
    "attack_distances": "certificate",
    "certify": "certificate",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .certificate import RADII as RADII
    from .certificate import Certificate as Certificate
    from .certificate import CertifiedRadius as CertifiedRadius
    from .certificate import attack_distances as attack_distances
    from .certificate import certify as certify
    from .config import CertifiedConfig as CertifiedConfig
    from .embedding import CertifiedEmbedding as CertifiedEmbedding
    from .modeling import SmoothedConfig as SmoothedConfig
    from .modeling import SmoothedModel as SmoothedModel
    from .modeling import SmoothedModelForImageClassification as SmoothedModelForImageClassification
    from .trainer import CertifiedTrainer as CertifiedTrainer
    from .verifier import CertifiedVerifier as CertifiedVerifier
