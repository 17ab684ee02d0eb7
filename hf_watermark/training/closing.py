"""What an owner is told when a training has ended."""

import logging
from collections.abc import Sequence

from ..evidence import LEVEL_B, LEVEL_N, Evidence
from ..keys import WatermarkKey
from ..publishing.targets import below_target


logger = logging.getLogger(__name__)


def report(key: WatermarkKey, evidence: Evidence, stronger: str, problems: Sequence[str] = ()) -> None:
    """
    Warns where the mark cannot be claimed, and where it is weaker than its config asks, which is kept among the warnings of the evidence.

    Args:
        evidence ([`Evidence`]): Of the trained model under `key`, on the owner's own word.
        stronger (`str`): What can be raised, in words.
        problems (`Sequence[str]`, *optional*): Of the loop.
    """
    if not evidence.found:
        logger.warning("%s. %s", _unclaimable(evidence, problems), f"Train longer, or raise {stronger}.")
    weak = below_target(key, evidence) if evidence.found or evidence.log2_p <= LEVEL_B else []
    evidence.warnings += weak
    for line in weak:
        logger.warning("%s", line)


def _unclaimable(evidence: Evidence, problems: Sequence[str]) -> str:
    if evidence.log2_p <= LEVEL_B and not evidence.bound and not problems:
        return (
            f"the mark is in the trained model (log2 p = {evidence.log2_p:.0f}), but its key is bound to no public beacon, so a claim asks for "
            f"{LEVEL_N:.0f}. With a key that is bound before the training (`plan_key`, `hf-watermark precommit --beacon`, then `key=`) "
            f"{LEVEL_B:.0f} is enough"
        )
    said = "; ".join([evidence.reason, *problems])
    return f"the mark could not be read back from the trained model ({said}); do not claim this model"


__all__ = ["report"]
