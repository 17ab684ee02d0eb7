"""What an owner asked of a mark, beside what was read of it."""

from ..evidence import Evidence
from ..keys import WatermarkKey


def below_target(key: WatermarkKey, evidence: Evidence) -> list[str]:
    """
    The marks that are weaker than their config asks (`target_log2_p`), a sentence for each.

    Args:
        evidence ([`Evidence`]): Read under this key.
    """
    said = []
    for assignment in key.assignments:
        target, found = assignment.config.get("target_log2_p", 0.0), evidence.by_method.get(assignment.method)
        if not target or found is None:
            continue
        weakest = max(part.log2_p for part in found.parts or [found])
        if weakest > target:
            said.append(
                f"the mark of `{assignment.method}` has log2 p = {weakest:.0f}, its target was {target:.0f}: fine-tuning or quantisation may take it "
                "below what a claim asks for"
            )
    return said


__all__ = ["below_target"]
