"""A method from outside the package: the smallest that goes the whole way. Bits are the signs of sums of key-drawn weights of one tensor."""

from .config import ToySignsConfig
from .embedding import ToySignsEmbedding
from .trainer import ToySignsTrainer
from .verifier import ToySignsVerifier


__all__ = ["ToySignsConfig", "ToySignsEmbedding", "ToySignsTrainer", "ToySignsVerifier"]
