"""What a judge comes to: steps, verdict, and the transcript by which others arrive at the same."""

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ..evidence import Evidence, Strength, Verdict
from ..keys import Owner
from ..package import VERSION
from ..serialization import canonical_json
from .reading import Reader
from .report import LevelReport, Outcome, iso


CONTROL = "control: "
TRANSCRIPT_DOMAIN = b"hf-watermark/transcript/v1\x00"


@dataclass(frozen=True)
class Step:
    """One thing that the judge looked at."""

    name: str
    outcome: Outcome
    detail: str
    is_control: bool = False

    @classmethod
    def control(cls, name: str, outcome: Outcome, detail: str) -> "Step":
        """A check of the check, which voids the verdict where it fails."""
        return cls(f"{CONTROL}{name}", outcome, detail, is_control=True)

    def to_dict(self) -> dict[str, Any]:
        step = {"step": self.name, "outcome": str(self.outcome), "detail": self.detail}
        return step | {"is_control": self.is_control}


@dataclass
class Judgement:
    """
    Args:
        verdict ([`Verdict`]), reason (`str`):
            The outcome, and why.
        level ([`Strength`]):
            The level that was asked for: `B` where beacon and dates are proven, `N` otherwise.
        looks (`int`):
            Looks that were charged.
        own_looks (`int`):
            Those among them that this claim caused, an aligned reading not counted.
        doubt (`str`):
            Why a reading in the coordinates of the claimant's published model is no claim; empty where it is one.
        reader ([`Reader`], *optional*):
            Reads the opened sub-key from further models, once the claim was admitted.
        transcript (`dict`):
            Everything by which somebody else arrives at the same verdict; JSON.
    """

    verdict: Verdict
    reason: str
    level: Strength
    looks: int
    steps: list[Step]
    evidence: Evidence | None
    controls: dict[str, Any]
    report: LevelReport
    inputs: dict[str, Any]
    moment: datetime = field(default_factory=lambda: datetime.now(UTC))
    own_looks: int = 0
    doubt: str = ""
    reader: Reader | None = field(default=None, repr=False)

    @property
    def found(self) -> bool:
        return self.verdict is Verdict.FOUND

    @property
    def transcript(self) -> dict[str, Any]:
        return {
            "schema": "hf-watermark/transcript/v1",
            "library_version": VERSION,
            "date": iso(self.moment),
            "inputs": self.inputs,
            "steps": [step.to_dict() for step in self.steps],
            "statement": self.report.to_dict(),
            "ledger": {
                "level": str(self.level),
                "looks": self.looks,
                "bits_charged": math.ceil(math.log2(self.looks)),
            },
            "controls": self.controls,
            "evidence": self.evidence.to_dict() if self.evidence else None,
            "verdict": str(self.verdict),
            "reason": self.reason,
        }

    def signed_by(self, judge: Owner) -> dict[str, Any]:
        """The transcript with a judge's signature over its RFC 8785 form."""
        return signed_transcript(self.transcript, judge)


def signed_transcript(transcript: dict[str, Any], judge: Owner) -> dict[str, Any]:
    signature = judge.sign(TRANSCRIPT_DOMAIN + canonical_json(transcript))
    return {"transcript": transcript, "judge": judge.public_key.hex(), "signature": signature.hex()}
