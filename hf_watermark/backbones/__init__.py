"""Vision backbones: roles, carriers and anchors, canonical weights, loading."""

from .carriers import STEM, Carrier, LayoutMismatch, canonical_rows, describe, locate, read_carriers
from .families import FAMILIES, find_carriers, find_stem
from .loading import backbone_record, full_parameter, live_weights, run_on_backbone, wrap_timm


__all__ = [
    "FAMILIES",
    "STEM",
    "Carrier",
    "LayoutMismatch",
    "backbone_record",
    "canonical_rows",
    "describe",
    "find_carriers",
    "find_stem",
    "full_parameter",
    "live_weights",
    "locate",
    "read_carriers",
    "run_on_backbone",
    "wrap_timm",
]
