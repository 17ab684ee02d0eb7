"""Who is right: levels of a published model, the judge of one claim, and disputes between two claimants."""

from ..publishing.findings import Level, LevelReport, Outcome
from .disclosure import Disclosure
from .dispute import Claimant, DisputeResult, dispute
from .judge import judge
from .judgement import Judgement
from .levels import check
from .verified import verify_claim


__all__ = [
    "Claimant",
    "Disclosure",
    "DisputeResult",
    "Judgement",
    "Level",
    "LevelReport",
    "Outcome",
    "check",
    "dispute",
    "judge",
    "verify_claim",
]
