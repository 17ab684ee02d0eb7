"""Evidence: the result of one check, how several are combined, and which level a claim reaches."""

import json
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .statistics import charge_looks, log2_e_from_log2_p, log2_p_from_log2_e, quotable


class Access(StrEnum):
    """What a verifier may see of a suspect."""

    WEIGHTS = "weights"
    PROBABILITIES = "probabilities"
    LABELS = "labels"


class Verdict(StrEnum):
    FOUND = "mark found"
    NOT_FOUND = "not found"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid claim"


# protocol.md §0.2: 2^-64 leaves 1e-9 after 2^34 tries of a key bound to a beacon; without a beacon 2^-128 is asked for.
LEVEL_B, LEVEL_N, SELF_CHECK = -64.0, -128.0, -20.0


@dataclass
class Evidence:
    """
    The result of one check.

    Args:
        method (`str`):
            Method name, or `combined`.
        matches, trials (`int`):
            Integer counts behind the p-value (summed over sub-keys in combined evidence).
        log2_p (`float`):
            log2 of the p-value, looks already charged. Never below -256, the smallest value that is ever quoted.
        log2_e (`float`):
            log2 of the e-value; e-values of different sub-keys multiply.
        null (`str`):
            The null hypothesis and its law, in words.
        access (`str`):
            What was read of the suspect.
        bound (`bool`):
            Whether the key is bound to a public beacon, so that level B is enough.
        looks (`int`):
            Number of looks charged.
        warnings (`list[str]`):
            What a reader should know.
        controls (`dict`):
            Results of the decoy keys that were sent through the same code on the same suspect.
        parts (`list[Evidence]`):
            The single checks that were combined.
        details (`dict`):
            Method-specific integers and names for people.
    """

    method: str
    matches: int
    trials: int
    log2_p: float
    log2_e: float
    null: str
    access: str
    bound: bool = False
    looks: int = 1
    reason: str = ""
    verdict: Verdict = Verdict.NOT_FOUND
    warnings: list[str] = field(default_factory=list)
    controls: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    parts: list["Evidence"] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Share of matches."""
        return self.matches / self.trials if self.trials else 0.0

    @property
    def level(self) -> str:
        """Strength of the p-value alone: `N`, `B`, `self-check` or `none`."""
        for name, limit in (("N", LEVEL_N), ("B", LEVEL_B), ("self-check", SELF_CHECK)):
            if self.log2_p <= limit:
                return name
        return "none"

    @property
    def found(self) -> bool:
        return self.verdict is Verdict.FOUND

    def decide(self) -> "Evidence":
        """Sets verdict and reason from the p-value, the level that applies and the controls; returns itself."""
        limit, level = (LEVEL_B, "B") if self.bound else (LEVEL_N, "N")
        if self.verdict is Verdict.INVALID:
            return self
        if self.controls.get("failed"):
            self.verdict, self.reason = Verdict.INCONCLUSIVE, f"a control failed: {self.controls['failed']}"
        elif self.log2_p <= limit:
            self.verdict, self.reason = (
                Verdict.FOUND,
                f"log2 p = {self.log2_p:.1f}, level {level} asks for {limit:.0f}",
            )
        elif self.log2_p <= SELF_CHECK:
            self.verdict = Verdict.INCONCLUSIVE
            self.reason = f"log2 p = {self.log2_p:.1f} is strong for the owner's own radar, but a claim at level {level} asks for {limit:.0f}"
        else:
            self.verdict, self.reason = (
                Verdict.NOT_FOUND,
                f"log2 p = {self.log2_p:.1f}, level {level} asks for {limit:.0f}",
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "verdict": str(self.verdict),
            "reason": self.reason,
            "level": self.level,
            "matches": self.matches,
            "trials": self.trials,
            "log2_p": round(self.log2_p, 3),
            "log2_e": round(self.log2_e, 3),
            "null": self.null,
            "access": self.access,
            "bound_to_beacon": self.bound,
            "looks": self.looks,
            "warnings": self.warnings,
            "controls": self.controls,
            "details": self.details,
            "parts": [part.to_dict() for part in self.parts],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    def __str__(self) -> str:
        looks = f"; looks charged {math.log2(self.looks):.0f} bits" if self.looks > 1 else ""
        return (
            f"{self.verdict} [{self.method}]: log2 p = {self.log2_p:.1f} ({self.matches}/{self.trials} matches{looks})"
        )


def single(
    method: str, matches: int, trials: int, log2_p: float, null: str, access: Access, **fields: Any
) -> Evidence:
    """Evidence of one sub-key from one exact test; the e-value is the calibrated p-value unless given."""
    log2_e = fields.pop("log2_e", None)
    return Evidence(
        method=method,
        matches=matches,
        trials=trials,
        log2_p=quotable(log2_p),
        log2_e=log2_e_from_log2_p(log2_p) if log2_e is None else log2_e,
        null=null,
        access=str(access),
        **fields,
    )


def combine(parts: list[Evidence], method: str, looks: int = 1) -> Evidence:
    """
    One evidence from several *different* sub-keys of one key: given the suspect their streams are independent, so the e-values
    multiply and p <= 1/E (protocol.md §3.7). A spoilt sub-key (a published one that a thief erased, say) costs a few bits only.
    """
    if not parts:
        raise ValueError("nothing to combine: no check was run")
    bound = all(part.bound for part in parts)
    if len(parts) == 1:
        only = parts[0]
        log2_p, log2_e, null = only.log2_p, only.log2_e, only.null
    else:
        log2_e = sum(part.log2_e for part in parts)
        log2_p = log2_p_from_log2_e(log2_e)
        null = "product of the e-values of independent sub-keys; p <= 1/E (Markov)"
    return Evidence(
        method=method,
        matches=sum(part.matches for part in parts),
        trials=sum(part.trials for part in parts),
        log2_p=quotable(charge_looks(log2_p, looks)),
        log2_e=log2_e,
        null=null,
        access="+".join(sorted({part.access for part in parts})),
        bound=bound,
        looks=looks,
        warnings=[text for part in parts for text in part.warnings],
        parts=parts,
    )
