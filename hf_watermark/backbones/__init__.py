"""Vision backbones: roles, carriers and anchors, canonical weights, loading."""

from typing import TYPE_CHECKING

from ..package import on_first_use


_NAMES = {
    "Adapter": "adapters",
    "Change": "adapted",
    "Composed": "adapters",
    "LiveChanges": "adapted",
    "adapter_layers": "adapted",
    "apart_from": "adapters",
    "as_one": "adapted",
    "changes": "adapted",
    "describe_changes": "adapted",
    "plain_copy": "adapted",
    "refuse_unmarkable": "adapted",
    "unsaved_statistics": "adapted",
    "Carrier": "carriers",
    "Entries": "entries",
    "FAMILIES": "families",
    "FLOATS": "formats",
    "FoldedNet": "folding",
    "Found": "families",
    "LayoutMismatch": "carriers",
    "Placing": "placing",
    "STEM": "carriers",
    "answers_of": "live",
    "as_pretrained": "loading",
    "auto_class": "loading",
    "backbone_config": "loading",
    "backbone_record": "loading",
    "by_witness": "witness",
    "canonical_form": "carriers",
    "canonical_rows": "reading",
    "describe": "carriers",
    "evaluation_mode": "folding",
    "images_taken": "examples",
    "extras_in_words": "extras",
    "find_carriers": "families",
    "find_places": "placing",
    "find_stem": "families",
    "full_parameter": "sharding",
    "gathered_model": "filling",
    "has_further_blocks": "placing",
    "is_plain": "formats",
    "layout_of": "layout",
    "layout_table": "report",
    "level": "carriers",
    "refuse_other_shapes": "carriers",
    "is_sharded": "sharding",
    "live_weights": "adapted",
    "locate": "carriers",
    "located": "placing",
    "missing_in_words": "surplus",
    "moved_on": "surplus",
    "logits_of": "folding",
    "named_on_backbone": "filling",
    "own_rows": "carriers",
    "read_carriers": "carriers",
    "read_float": "formats",
    "read_weight": "reading",
    "refuse_half_precision": "folding",
    "run_on_backbone": "filling",
    "second_names": "live",
    "shapes_in": "filling",
    "slot_rows": "carriers",
    "surplus_in_words": "surplus",
    "turned_places": "turned",
    "unexplained": "placing",
    "witnessed": "witness",
    "refuse_path": "live",
    "unwrapped": "live",
    "wrap_timm": "loading",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .adapted import Change as Change
    from .adapted import LiveChanges as LiveChanges
    from .adapted import adapter_layers as adapter_layers
    from .adapted import as_one as as_one
    from .adapted import changes as changes
    from .adapted import describe_changes as describe_changes
    from .adapted import live_weights as live_weights
    from .adapted import plain_copy as plain_copy
    from .adapted import refuse_unmarkable as refuse_unmarkable
    from .adapted import unsaved_statistics as unsaved_statistics
    from .adapters import Adapter as Adapter
    from .adapters import Composed as Composed
    from .adapters import apart_from as apart_from
    from .carriers import STEM as STEM
    from .carriers import Carrier as Carrier
    from .carriers import LayoutMismatch as LayoutMismatch
    from .carriers import canonical_form as canonical_form
    from .carriers import describe as describe
    from .carriers import level as level
    from .carriers import locate as locate
    from .carriers import own_rows as own_rows
    from .carriers import read_carriers as read_carriers
    from .carriers import refuse_other_shapes as refuse_other_shapes
    from .carriers import slot_rows as slot_rows
    from .entries import Entries as Entries
    from .examples import images_taken as images_taken
    from .extras import extras_in_words as extras_in_words
    from .families import FAMILIES as FAMILIES
    from .families import Found as Found
    from .families import find_carriers as find_carriers
    from .families import find_stem as find_stem
    from .filling import gathered_model as gathered_model
    from .filling import named_on_backbone as named_on_backbone
    from .filling import run_on_backbone as run_on_backbone
    from .filling import shapes_in as shapes_in
    from .folding import FoldedNet as FoldedNet
    from .folding import evaluation_mode as evaluation_mode
    from .folding import logits_of as logits_of
    from .folding import refuse_half_precision as refuse_half_precision
    from .formats import FLOATS as FLOATS
    from .formats import is_plain as is_plain
    from .formats import read_float as read_float
    from .layout import layout_of as layout_of
    from .live import answers_of as answers_of
    from .live import refuse_path as refuse_path
    from .live import second_names as second_names
    from .live import unwrapped as unwrapped
    from .loading import as_pretrained as as_pretrained
    from .loading import auto_class as auto_class
    from .loading import backbone_config as backbone_config
    from .loading import backbone_record as backbone_record
    from .loading import wrap_timm as wrap_timm
    from .placing import Placing as Placing
    from .placing import find_places as find_places
    from .placing import has_further_blocks as has_further_blocks
    from .placing import located as located
    from .placing import unexplained as unexplained
    from .reading import canonical_rows as canonical_rows
    from .reading import read_weight as read_weight
    from .report import layout_table as layout_table
    from .sharding import full_parameter as full_parameter
    from .sharding import is_sharded as is_sharded
    from .surplus import missing_in_words as missing_in_words
    from .surplus import moved_on as moved_on
    from .surplus import surplus_in_words as surplus_in_words
    from .turned import turned_places as turned_places
    from .witness import by_witness as by_witness
    from .witness import witnessed as witnessed
