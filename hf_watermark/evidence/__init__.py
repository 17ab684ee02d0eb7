"""Evidence: the result of one check, how several are combined, and which level a claim reaches."""

from .check import (
    BASIS_IN_WORDS,
    CONTROL_LIMIT,
    LEVEL_B,
    LEVEL_N,
    MOST_UNUSABLE,
    SELF_CHECK,
    UNDATED,
    Access,
    Basis,
    Check,
    SkipKind,
    Skipped,
    Strength,
    Verdict,
    level_limit,
)
from .combining import combine, single
from .result import COMBINED, Evidence


__all__ = [
    "BASIS_IN_WORDS",
    "COMBINED",
    "CONTROL_LIMIT",
    "LEVEL_B",
    "LEVEL_N",
    "MOST_UNUSABLE",
    "SELF_CHECK",
    "UNDATED",
    "Access",
    "Basis",
    "Check",
    "Evidence",
    "SkipKind",
    "Skipped",
    "Strength",
    "Verdict",
    "combine",
    "level_limit",
    "single",
]
