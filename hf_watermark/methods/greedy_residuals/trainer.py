"""The Trainer of greedy residuals."""

from ...training.trainer import WatermarkTrainer
from .embedding import GreedyResidualsEmbedding


class GreedyResidualsTrainer(WatermarkTrainer):
    """
    [`~transformers.Trainer`] that puts the key's bits into the signs of greedy residuals of key-drawn weight groups.

    Example:

    ```python
    >>> trainer = GreedyResidualsTrainer(
    ...     model=model, args=args, train_dataset=ds, watermark=GreedyResidualsConfig(), owner=owner
    ... )
    >>> trainer.train()
    >>> trainer.verify()
    >>> trainer.key.save("keys/my-model")
    ```
    """

    embedding_classes = (GreedyResidualsEmbedding,)
