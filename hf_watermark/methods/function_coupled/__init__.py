"""Function-coupled rules: a black-box mark on images fused of two classes."""

from typing import TYPE_CHECKING

from ...package import on_first_use


_NAMES = {
    "FunctionCoupledConfig": "config",
    "FunctionCoupledEmbedding": "embedding",
    "FunctionCoupledTrainer": "trainer",
    "FunctionCoupledVerifier": "verifier",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .config import FunctionCoupledConfig as FunctionCoupledConfig
    from .embedding import FunctionCoupledEmbedding as FunctionCoupledEmbedding
    from .trainer import FunctionCoupledTrainer as FunctionCoupledTrainer
    from .verifier import FunctionCoupledVerifier as FunctionCoupledVerifier
