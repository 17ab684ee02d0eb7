"""The Trainer of function-coupled rules."""

from ...training.trainer import WatermarkTrainer
from .embedding import FunctionCoupledEmbedding


class FunctionCoupledTrainer(WatermarkTrainer):
    """
    [`~transformers.Trainer`] that teaches the model many key-drawn rules on images fused from its own training data; see
    [`FunctionCoupledConfig`].
    """

    embedding_classes = (FunctionCoupledEmbedding,)
