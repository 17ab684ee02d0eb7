"""WaterMAS: a white-box mark that replaces weights and is kept in place by the sharpness of the loss around them."""

from typing import TYPE_CHECKING

from ...package import on_first_use


_NAMES = {
    "PayloadReading": "verifier",
    "WaterMASConfig": "config",
    "WaterMASEmbedding": "embedding",
    "WaterMASTrainer": "trainer",
    "WaterMASVerifier": "verifier",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .config import WaterMASConfig as WaterMASConfig
    from .embedding import WaterMASEmbedding as WaterMASEmbedding
    from .trainer import WaterMASTrainer as WaterMASTrainer
    from .verifier import PayloadReading as PayloadReading
    from .verifier import WaterMASVerifier as WaterMASVerifier
