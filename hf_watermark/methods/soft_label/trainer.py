"""The Trainers of soft-label watermarks."""

from ...training.trainer import WatermarkTrainer
from .embedding import CSPEmbedding, USPEmbedding


class USPTrainer(WatermarkTrainer):
    """
    [`~transformers.Trainer`] that fits soft labels whose small probabilities follow a template of the key; see [`USPConfig`].

    The images of the key's pool are taken out of the training data, so that a verifier's queries were never trained on.
    """

    embedding_classes = (USPEmbedding,)


class CSPTrainer(WatermarkTrainer):
    """
    [`~transformers.Trainer`] that trains the code word of one licensee into the small probabilities of their copy: one key per licensee. See
    [`CSPConfig`].

    The images of the key's pool are taken out of the training data, so that a verifier's queries were never trained on.
    """

    embedding_classes = (CSPEmbedding,)
