"""The Trainer of the toy."""

from hf_watermark.training.trainer import WatermarkTrainer

from .embedding import ToySignsEmbedding


class ToySignsTrainer(WatermarkTrainer):
    embedding_classes = (ToySignsEmbedding,)
