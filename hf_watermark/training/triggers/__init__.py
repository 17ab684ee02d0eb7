"""Black-box triggers: pools of source images, rules, fusion, and masking while they are learnt."""

from .families import FAMILIES, draw_labels, photograph_crops, render_triggers
from .foreign import check_images, pool_tensors
from .masking import MASKINGS, maskable_weights, masked
from .pool import collect_images, spread_classes, undisturbed_random_state, without_rows
from .rules import LAYOUTS, Rule, blend, draw_questions, draw_rules, fuse, rule_capacity, with_targets


__all__ = [
    "FAMILIES",
    "LAYOUTS",
    "MASKINGS",
    "Rule",
    "blend",
    "check_images",
    "collect_images",
    "draw_labels",
    "draw_questions",
    "draw_rules",
    "fuse",
    "maskable_weights",
    "masked",
    "photograph_crops",
    "pool_tensors",
    "render_triggers",
    "rule_capacity",
    "spread_classes",
    "undisturbed_random_state",
    "with_targets",
    "without_rows",
]
