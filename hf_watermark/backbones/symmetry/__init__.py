"""Which changes of a network's weights change none of its answers, derived from its graph."""

from .changes import Change, Factors, Mixed, Moved, change_stored
from .folding import fold, unfold
from .structure import Axis, Segment, Space, Symmetry, symmetry_of
from .tracing import Untraceable


__all__ = [
    "Axis",
    "Change",
    "Factors",
    "Mixed",
    "Moved",
    "Segment",
    "Space",
    "Symmetry",
    "Untraceable",
    "change_stored",
    "fold",
    "symmetry_of",
    "unfold",
]
