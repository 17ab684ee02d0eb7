"""Who is right: levels of a published model, the judge of one claim, and disputes between two claimants."""

from .levels import Level, LevelReport, Outcome, check


__all__ = ["Level", "LevelReport", "Outcome", "check"]
