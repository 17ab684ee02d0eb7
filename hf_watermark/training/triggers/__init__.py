"""Black-box triggers: pools of source images, rules, fusion, and masking while they are learnt."""

from typing import TYPE_CHECKING

from ...package import on_first_use


_NAMES = {
    "FAMILIES": "families",
    "LAYOUTS": "rules",
    "MASKINGS": "masking",
    "Rule": "rules",
    "blend": "rules",
    "check_images": "foreign",
    "collect_images": "pool",
    "image_count": "pool",
    "draw_labels": "families",
    "draw_questions": "rules",
    "draw_rules": "rules",
    "frozen_statistics": "masking",
    "fuse": "rules",
    "in_kind": "labels",
    "maskable_weights": "masking",
    "masked": "masking",
    "photograph_crops": "families",
    "pool_tensors": "foreign",
    "read_classes": "foreign",
    "read_source_classes": "foreign",
    "render_triggers": "families",
    "read_row": "labels",
    "rule_capacity": "rules",
    "spread_classes": "pool",
    "undisturbed_random_state": "pool",
    "with_targets": "rules",
    "without_rows": "pool",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .families import FAMILIES as FAMILIES
    from .families import draw_labels as draw_labels
    from .families import photograph_crops as photograph_crops
    from .families import render_triggers as render_triggers
    from .foreign import check_images as check_images
    from .foreign import pool_tensors as pool_tensors
    from .foreign import read_classes as read_classes
    from .foreign import read_source_classes as read_source_classes
    from .labels import in_kind as in_kind
    from .labels import read_row as read_row
    from .masking import MASKINGS as MASKINGS
    from .masking import frozen_statistics as frozen_statistics
    from .masking import maskable_weights as maskable_weights
    from .masking import masked as masked
    from .pool import collect_images as collect_images
    from .pool import image_count as image_count
    from .pool import spread_classes as spread_classes
    from .pool import undisturbed_random_state as undisturbed_random_state
    from .pool import without_rows as without_rows
    from .rules import LAYOUTS as LAYOUTS
    from .rules import Rule as Rule
    from .rules import blend as blend
    from .rules import draw_questions as draw_questions
    from .rules import draw_rules as draw_rules
    from .rules import fuse as fuse
    from .rules import rule_capacity as rule_capacity
    from .rules import with_targets as with_targets
