"""Marks for models in whatever loop, or in none: keys before training, and finished weights that are marked as they stand."""

from typing import TYPE_CHECKING

from ..package import on_first_use


_NAMES = {
    "FidelityReport": "fidelity",
    "Watermark": "loop",
    "mark_model": "writing",
    "measure_fidelity": "fidelity",
    "plan_key": "keys",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .fidelity import FidelityReport as FidelityReport
    from .fidelity import measure_fidelity as measure_fidelity
    from .keys import plan_key as plan_key
    from .loop import Watermark as Watermark
    from .writing import mark_model as mark_model
