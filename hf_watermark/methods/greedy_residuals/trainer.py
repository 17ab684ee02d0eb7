"""The Trainer of greedy residuals."""

from ...training.trainer import WatermarkTrainer
from .embedding import GreedyResidualsEmbedding


class GreedyResidualsTrainer(WatermarkTrainer):
    """
    [`~transformers.Trainer`] that puts the key's bits into the signs of greedy residuals of key-drawn weight groups; see
    [`GreedyResidualsConfig`].
    """

    embedding_classes = (GreedyResidualsEmbedding,)
