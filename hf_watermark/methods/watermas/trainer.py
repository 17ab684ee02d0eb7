"""The Trainer of WaterMAS."""

from ...training.trainer import WatermarkTrainer
from .embedding import WaterMASEmbedding


class WaterMASTrainer(WatermarkTrainer):
    """
    [`~transformers.Trainer`] that puts the key's bits into the signs of single, key-drawn weights and sharpens the loss around them; see
    [`WaterMASConfig`].

    Example:

    ```python
    >>> trainer = WaterMASTrainer(
    ...     model=model, args=args, train_dataset=ds, watermark=WaterMASConfig(payload=b"licence 4711"), owner=owner
    ... )
    >>> trainer.train()
    >>> trainer.verify()
    ```
    """

    embedding_classes = (WaterMASEmbedding,)
