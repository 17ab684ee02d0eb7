"""What a judge comes to: steps, verdict, and the transcript by which others arrive at the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ..evidence import Evidence, Strength, Verdict
from ..keys import CommitmentProblem, Owner
from ..package import VERSION
from ..publishing.findings import LevelReport, Outcome, iso
from ..serialization import canonical_json
from .asking import Request
from .disclosure import Disclosure
from .reading import Reader


CONTROL = "control: "
TRANSCRIPT_DOMAIN = b"hf-watermark/transcript/v1\x00"


@dataclass(frozen=True)
class Step:
    """One thing that the judge looked at."""

    name: str
    outcome: Outcome
    detail: str
    is_control: bool = False

    def to_dict(self) -> dict[str, Any]:
        step = {"step": self.name, "outcome": str(self.outcome), "detail": self.detail}
        return step | {"is_control": self.is_control}


class Dismissed(Exception):
    """The claim is inadmissible, or hangs on a date that nobody gave; the suspect is not looked at."""

    def __init__(self, reason: str, verdict: Verdict = Verdict.INVALID):
        super().__init__(reason)
        self.verdict = verdict


class Steps(list[Step]):
    """What a judge looked at, in this order."""

    def note(self, name: str, outcome: Outcome, detail: str) -> None:
        self.append(Step(name, outcome, detail))

    def control(self, name: str, outcome: Outcome, detail: str) -> None:
        """A check of the check, which voids the verdict where it fails."""
        self.append(Step(f"{CONTROL}{name}", outcome, detail, is_control=True))

    def require(
        self,
        name: str,
        problems: Sequence[CommitmentProblem | str],
        outcome: Outcome | None = None,
        prefix: str = "",
        holds: str = "holds",
    ) -> None:
        """
        Notes what was asked, and what speaks against it or is missing.

        Args:
            outcome ([`Outcome`], *optional*):
                By default `failed` where there are problems.
            prefix (`str`):
                What stands before the problems in the reason of the verdict.
            holds (`str`):
                What is said where there are none.

        Raises:
            [`Dismissed`]: when it failed.
        """
        said = "; ".join(map(str, problems))
        outcome = outcome or (Outcome.FAILED if problems else Outcome.PASSED)
        self.note(name, outcome, said or holds)
        if outcome is Outcome.FAILED:
            raise Dismissed(prefix + said)

    @property
    def failed_control(self) -> Step | None:
        return next((step for step in self if step.is_control and step.outcome is Outcome.FAILED), None)


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
        nonce (`str`):
            The name of the dispute, which the judge asked the claimant to sign.
        suspect (`dict`):
            Name, and once it was looked at, commit and digests.
        controls (`dict[str, Evidence]`):
            What was read of models that must, or must not, show the mark.
        own_looks (`int`):
            Those among them that this claim caused, an aligned reading not counted.
        doubt (`str`):
            Why a reading in the coordinates of the claimant's published model is no claim; empty where it is one.
        reader ([`Reader`], *optional*):
            Reads the opened sub-key from further models, once the claim was admitted.
        requests (`list[Request]`):
            What to ask for next, the most useful first.
        transcript (`dict`):
            Everything by which somebody else arrives at the same verdict; JSON.
    """

    verdict: Verdict
    reason: str
    level: Strength
    looks: int
    steps: Steps
    evidence: Evidence | None
    controls: dict[str, Evidence]
    report: LevelReport
    disclosure: Disclosure
    nonce: str
    suspect: dict[str, Any]
    moment: datetime = field(default_factory=lambda: datetime.now(UTC))
    own_looks: int = 0
    doubt: str = ""
    requests: list[Request] = field(default_factory=list)
    reader: Reader | None = field(default=None, repr=False)

    @property
    def found(self) -> bool:
        return self.verdict is Verdict.FOUND

    @property
    def inputs(self) -> dict[str, Any]:
        """What fixes the inputs, so that others can repeat it."""
        report, opening = self.report, self.disclosure.opening
        digest = None if report.signed is None else report.signed.statement.digest
        return {
            "opening_sha256": self.disclosure.digest,
            "subkey": opening.index,
            "method": opening.assignment.method,
            "nonce": self.nonce,
            "statement": {"source": report.source, "commit": report.commit, "sha256": digest},
            "suspect": self.suspect,
        }

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
            "controls": {name: evidence.to_dict() for name, evidence in self.controls.items()},
            "evidence": self.evidence.to_dict() if self.evidence else None,
            "verdict": str(self.verdict),
            "reason": self.reason,
            "ask_next": [request.to_dict() for request in self.requests],
        }


def signed_transcript(transcript: dict[str, Any], judge: Owner) -> dict[str, Any]:
    """The transcript with a judge's signature over its RFC 8785 form."""
    signature = judge.sign(TRANSCRIPT_DOMAIN + canonical_json(transcript))
    return {"transcript": transcript, "judge": judge.public_key.hex(), "signature": signature.hex()}
