"""Function-coupled rules: a black-box mark on images fused of two classes."""

from .config import FunctionCoupledConfig
from .embedding import FunctionCoupledEmbedding
from .trainer import FunctionCoupledTrainer
from .verifier import FunctionCoupledVerifier


__all__ = ["FunctionCoupledConfig", "FunctionCoupledEmbedding", "FunctionCoupledTrainer", "FunctionCoupledVerifier"]
