"""Greedy residuals: a white-box, multi-bit mark in the signs of key-drawn weight groups."""

from typing import TYPE_CHECKING

from ...package import on_first_use


_NAMES = {
    "GreedyResidualsConfig": "config",
    "GreedyResidualsEmbedding": "embedding",
    "GreedyResidualsTrainer": "trainer",
    "GreedyResidualsVerifier": "verifier",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .config import GreedyResidualsConfig as GreedyResidualsConfig
    from .embedding import GreedyResidualsEmbedding as GreedyResidualsEmbedding
    from .trainer import GreedyResidualsTrainer as GreedyResidualsTrainer
    from .verifier import GreedyResidualsVerifier as GreedyResidualsVerifier
