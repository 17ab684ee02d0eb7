"""Black-box triggers: pools of source images, rules, fusion, and masking while they are learnt."""

from .masking import MASKINGS, maskable_weights, masked
from .pool import collect_images, undisturbed_random_state, without_rows
from .rules import LAYOUTS, Rule, blend, draw_questions, draw_rules, fuse, rule_capacity, with_targets


__all__ = [
    "LAYOUTS",
    "MASKINGS",
    "Rule",
    "blend",
    "collect_images",
    "draw_questions",
    "draw_rules",
    "fuse",
    "maskable_weights",
    "masked",
    "rule_capacity",
    "undisturbed_random_state",
    "with_targets",
    "without_rows",
]
