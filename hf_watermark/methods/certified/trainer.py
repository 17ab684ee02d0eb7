"""The Trainer of certified watermarks, which also certifies what it trained."""

from collections.abc import Callable, Sequence

import numpy as np
from accelerate.utils import gather_object
from torch import nn

from ...training.trainer import WatermarkTrainer
from .certificate import RADII, Certificate, certify
from .embedding import CertifiedEmbedding


class CertifiedTrainer(WatermarkTrainer):
    """
    [`~transformers.Trainer`] that teaches the model key-drawn triggers under Gaussian parameter noise, which are taken out of the training
    data; see [`CertifiedConfig`].
    """

    embedding_classes = (CertifiedEmbedding,)

    def certify(
        self,
        radii: Sequence[float] = RADII,
        confidence: float = 0.99,
        draws: int | None = None,
        at_least: float | None = None,
        attacked: dict[str, nn.Module] | None = None,
    ) -> Certificate:
        """
        The certificate of the model as it is now; see [`certify`]. The draws are split over all processes, and every process gets the
        same certificate.
        """
        self.sync_buffers()
        share = self._share if self.accelerator.num_processes > 1 else None
        return certify(
            self.embedding(CertifiedEmbedding).claim,
            self.marks.whole_model(),
            radii,
            confidence,
            draws,
            at_least,
            attacked,
            progress=not self.args.disable_tqdm and self.accelerator.is_main_process,
            share=share,
        )

    def _share(self, seeds: list[int], count: Callable[[list[int]], np.ndarray]) -> np.ndarray:
        with self.accelerator.split_between_processes(seeds) as own:
            mine = count(own).tolist()
        return np.array(gather_object(mine), dtype=np.int64)
