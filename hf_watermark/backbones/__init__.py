"""Vision backbones: roles, carriers and anchors, canonical weights, loading."""

from .carriers import (
    STEM,
    Carrier,
    LayoutMismatch,
    canonical_form,
    describe,
    locate,
    own_rows,
    read_carriers,
    slot_rows,
)
from .entries import Entries
from .families import FAMILIES, find_carriers, find_stem
from .filling import gathered_model, run_on_backbone
from .folding import FoldedNet, evaluation_mode, example_images, logits_of, refuse_half_precision
from .formats import FLOATS, is_plain, read_float
from .live import answers_of, unwrapped
from .loading import (
    auto_class,
    backbone_config,
    backbone_record,
    full_parameter,
    is_sharded,
    live_weights,
    wrap_timm,
)
from .placing import Placing, find_places, has_further_blocks, located, unexplained
from .reading import canonical_rows, read_weight


__all__ = [
    "FAMILIES",
    "FLOATS",
    "STEM",
    "Carrier",
    "Entries",
    "FoldedNet",
    "LayoutMismatch",
    "Placing",
    "answers_of",
    "auto_class",
    "backbone_config",
    "backbone_record",
    "canonical_form",
    "canonical_rows",
    "describe",
    "evaluation_mode",
    "example_images",
    "find_carriers",
    "find_places",
    "find_stem",
    "full_parameter",
    "gathered_model",
    "has_further_blocks",
    "is_plain",
    "is_sharded",
    "live_weights",
    "locate",
    "located",
    "logits_of",
    "own_rows",
    "read_carriers",
    "read_float",
    "read_weight",
    "refuse_half_precision",
    "run_on_backbone",
    "slot_rows",
    "unexplained",
    "unwrapped",
    "wrap_timm",
]
