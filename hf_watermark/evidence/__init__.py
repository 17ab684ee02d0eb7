"""Evidence: the result of one check, how several are combined, and which level a claim reaches."""

from typing import TYPE_CHECKING

from ..package import on_first_use


_NAMES = {
    "Access": "check",
    "BASIS_IN_WORDS": "check",
    "Basis": "check",
    "COMBINED": "result",
    "CONTROL_LIMIT": "check",
    "Check": "check",
    "Evidence": "result",
    "LEVEL_B": "check",
    "LEVEL_N": "check",
    "MOST_UNUSABLE": "check",
    "SELF_CHECK": "check",
    "SkipKind": "check",
    "Skipped": "check",
    "Strength": "check",
    "UNDATED": "check",
    "Verdict": "check",
    "combine": "combining",
    "in_figures": "result",
    "level_limit": "check",
    "once_in": "check",
    "single": "combining",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .check import BASIS_IN_WORDS as BASIS_IN_WORDS
    from .check import CONTROL_LIMIT as CONTROL_LIMIT
    from .check import LEVEL_B as LEVEL_B
    from .check import LEVEL_N as LEVEL_N
    from .check import MOST_UNUSABLE as MOST_UNUSABLE
    from .check import SELF_CHECK as SELF_CHECK
    from .check import UNDATED as UNDATED
    from .check import Access as Access
    from .check import Basis as Basis
    from .check import Check as Check
    from .check import SkipKind as SkipKind
    from .check import Skipped as Skipped
    from .check import Strength as Strength
    from .check import Verdict as Verdict
    from .check import level_limit as level_limit
    from .check import once_in as once_in
    from .combining import combine as combine
    from .combining import single as single
    from .result import COMBINED as COMBINED
    from .result import Evidence as Evidence
    from .result import in_figures as in_figures
