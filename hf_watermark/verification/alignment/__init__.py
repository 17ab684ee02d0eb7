"""Undo function-preserving changes before a white-box mark is read; fitted on anchors only."""

from .align import AlignedWeights, Aligner, AlignmentReport
from .suspect import AlignedReading, decoy_agreement


__all__ = [
    "AlignedReading",
    "AlignedWeights",
    "Aligner",
    "AlignmentReport",
    "decoy_agreement",
]
