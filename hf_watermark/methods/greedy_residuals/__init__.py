"""Greedy residuals: a white-box, multi-bit mark in the signs of key-drawn weight groups."""

from .config import GreedyResidualsConfig
from .embedding import GreedyResidualsEmbedding
from .trainer import GreedyResidualsTrainer
from .verifier import GreedyResidualsVerifier


__all__ = ["GreedyResidualsConfig", "GreedyResidualsEmbedding", "GreedyResidualsTrainer", "GreedyResidualsVerifier"]
