"""WaterMAS: a white-box mark that replaces weights and is kept in place by the sharpness of the loss around them."""

from .config import WaterMASConfig
from .embedding import WaterMASEmbedding
from .trainer import WaterMASTrainer
from .verifier import PayloadReading, WaterMASVerifier


__all__ = ["PayloadReading", "WaterMASConfig", "WaterMASEmbedding", "WaterMASTrainer", "WaterMASVerifier"]
