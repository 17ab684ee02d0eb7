"""What an owner asked of a mark, beside what was read of it."""

from ..evidence import LEVEL_B, Evidence
from ..keys import WatermarkKey


def below_target(key: WatermarkKey, evidence: Evidence) -> list[str]:
    """
    The marks that are weaker than their config asks (`target_log2_p`), or that are not in where it asks for nothing: a sentence for each. Where
    methods are stacked, one of them may be strong enough for a claim, and another one lost.

    Args:
        evidence ([`Evidence`]): Read under this key.
    """
    said = []
    for assignment in key.assignments:
        target, found = assignment.config.get("target_log2_p", 0.0), evidence.by_method.get(assignment.method)
        if found is None:
            continue
        weakest = max(found.parts or [found], key=lambda part: part.log2_p)
        read = f"the mark of `{assignment.method}` has log2 p = {round(weakest.log2_p)}"
        # Half of its units at the least: a sub-key of few bits cannot reach level B alone.
        least = max(LEVEL_B, -weakest.trials / 2)
        if target and weakest.log2_p > target:
            said.append(
                f"{read}, its target was {target:.0f}: fine-tuning or quantisation may take it below what a claim asks for"
            )
        elif not target and weakest.log2_p > least:
            where = "" if weakest.subkey is None or len(found.parts) < 2 else f" under sub-key {weakest.subkey}"
            said.append(
                f"{read}{where}, and {least:.0f} is the least of one that is in: do not claim the model with it"
            )
    return said


__all__ = ["below_target"]
