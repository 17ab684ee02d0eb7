"""Evidence: the result of one check, how several are combined, and which level a claim reaches."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .serialization import InvalidInput
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


class Basis(StrEnum):
    """How much of the evidence rests on somebody's word (PROTOCOL.md §2.4)."""

    SELF_CHECK = "self-check"
    CLAIM = "claim"


BASIS_IN_WORDS = {
    Basis.SELF_CHECK: "self-check: as good as the word of whoever gave you the key (a claim needs a verified statement)",
    Basis.CLAIM: "claim: the key is the one of a verified statement",
}


# PROTOCOL.md §0.2: 2^-64 leaves 1e-9 after 2^34 tries of a key bound to a beacon; without a beacon 2^-128 is asked for.
LEVEL_B, LEVEL_N, SELF_CHECK = -64.0, -128.0, -20.0
# Each of the two limits of each sub-key's controls, as log2: with up to 1,024 sub-keys a true mark fails once in 10^9 checks.
CONTROL_LIMIT = -41.0
# "Not found" is said only where the mark could have been seen: with at most this share of answers that could not be used.
MOST_UNUSABLE = 0.1
UNDATED = (
    "the suspect was aligned to a reference that nobody dated before the suspect: whoever made it could have made it from the suspect, so "
    "it is as good as the word of whoever gave it to you"
)


def level_limit(bound: bool) -> float:
    """log2 p that a claim asks for: level B for a key bound to a public beacon, N for any other."""
    return LEVEL_B if bound else LEVEL_N


@dataclass(frozen=True)
class Check:
    """
    What the verifier decides about one check, before it looks at the suspect.

    Args:
        bound (`bool`):
            The key is bound to a beacon that the verifier looked up, so that level B is enough.
        looks (`int`):
            How many variants of this check were or will be tried.
        budget (`int`, *optional*):
            Most images that the suspect may be asked.
        basis ([`Basis`]):
            `claim` only where the key was found to be the one of a verified statement.
        disclosed (`frozenset[int]`):
            Sub-keys that others may know. They are read and shown, and never add evidence.
        doubt (`str`):
            Why an aligned reading counts as a self-check only, if its reference is not the model that the key commits to; empty where it was
            fixed before the suspect, and no common origin of the two explains what is read.
    """

    bound: bool = False
    looks: int = 1
    budget: int | None = None
    basis: Basis = Basis.SELF_CHECK
    disclosed: frozenset[int] = frozenset()
    doubt: str = UNDATED


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
        basis ([`Basis`]):
            On whose word it rests.
        subkey (`int`, *optional*):
            Which sub-key was read, in the evidence of a single one.
        disclosed (`bool`):
            Somebody else may know this sub-key, so its mark proves nothing; it is shown, and counts for nothing.
        capped (`str`):
            Why this reading can be a self-check at most; empty where it may be a claim.
        unread (`str`):
            What of the suspect could not be read under this key, and why; then "not found" is not said.
        queries, unusable (`int`):
            Images asked, and answers among them that could not be used.
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
    basis: Basis = Basis.SELF_CHECK
    subkey: int | None = None
    disclosed: bool = False
    capped: str = ""
    unread: str = ""
    queries: int = 0
    unusable: int = 0

    @property
    def rate(self) -> float:
        """Share of matches."""
        return self.matches / self.trials if self.trials else 0.0

    @property
    def level(self) -> str:
        """Strength of the p-value alone: `N`, `B`, `self-check` or `none`."""
        for name, limit in (("N", LEVEL_N), ("B", LEVEL_B), ("self-check", SELF_CHECK)):
            if self.log2_p <= limit:
                return "self-check" if self.capped else name
        return "none"

    @property
    def found(self) -> bool:
        return self.verdict is Verdict.FOUND

    def decide(self) -> "Evidence":
        """Sets verdict and reason from the p-value, the level that applies and the controls; returns itself."""
        limit, level = level_limit(self.bound), "B" if self.bound else "N"
        said = f"log2 p = {self.log2_p:.1f}"
        if self.verdict is Verdict.INVALID:
            return self
        if self.controls.get("failed"):
            self.verdict, self.reason = Verdict.INCONCLUSIVE, f"a control failed: {self.controls['failed']}"
        elif self.disclosed:
            self.verdict, self.reason = Verdict.INCONCLUSIVE, self._only_disclosed()
        elif self.log2_p <= limit and self.capped:
            self.verdict, self.reason = (
                Verdict.INCONCLUSIVE,
                f"{said}, but this counts as a self-check only: {self.capped}",
            )
        elif self.log2_p <= limit:
            self.verdict, self.reason = Verdict.FOUND, f"{said}, level {level} asks for {limit:.0f}"
        elif self.log2_p <= SELF_CHECK:
            self.verdict = Verdict.INCONCLUSIVE
            self.reason = (
                f"{said} is strong for the owner's own radar, but a claim at level {level} asks for {limit:.0f}"
            )
        elif (shown := self._shown()) is not None:
            self.verdict, self.reason = Verdict.INCONCLUSIVE, f"{shown._only_disclosed()}; of the secret ones, {said}"
        elif self.unread:
            self.verdict, self.reason = Verdict.INCONCLUSIVE, f"{said}, but {self.unread}"
        elif self.unusable > MOST_UNUSABLE * self.queries:
            self.verdict = Verdict.INCONCLUSIVE
            self.reason = f"{said}, but {self.unusable} of {self.queries} answers could not be used: a mark could not have been seen"
        elif not self.trials:
            self.verdict = Verdict.INCONCLUSIVE
            self.reason = f"{said}, but nothing that was read says anything about a mark: it could not have been seen"
        else:
            self.verdict, self.reason = Verdict.NOT_FOUND, f"{said}, level {level} asks for {limit:.0f}"
        return self

    def _shown(self) -> "Evidence | None":
        """A disclosed sub-key whose mark is there although it counts for nothing."""
        leaves = [leaf for part in self.parts for leaf in (part.parts or [part])]
        return next((leaf for leaf in leaves if leaf.disclosed and leaf.log2_p <= SELF_CHECK), None)

    def _only_disclosed(self) -> str:
        if self.log2_p <= SELF_CHECK:
            which = (
                "the public sub-key" if self.subkey in (0, None) else f"sub-key {self.subkey}, which was disclosed,"
            )
            return f"only {which} was found (log2 p = {self.log2_p:.1f}): anybody could have planted it"
        return "only disclosed sub-keys were read, and these prove nothing; check with a key that has others"

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
            "basis": str(self.basis),
            "subkey": self.subkey,
            "disclosed": self.disclosed,
            "queries": self.queries,
            "unusable_answers": self.unusable,
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
        counts = f"{self.matches}/{self.trials} matches{looks}"
        return f"{self.verdict} ({self.basis}) [{self.method}]: log2 p = {self.log2_p:.1f} ({counts})"


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


def combine(parts: Sequence[Evidence], method: str, looks: int = 1) -> Evidence:
    """
    One evidence from several *different* sub-keys of one key: given the suspect their streams are independent, so the e-values
    multiply and p <= 1/E (PROTOCOL.md §3.7). A spoilt sub-key costs a few bits only. Disclosed sub-keys are shown and left out.

    Raises:
        [`~serialization.InvalidInput`]: when a sub-key is there twice: it would be multiplied with itself.
    """
    if not parts:
        raise ValueError("nothing to combine: no check was run")
    named = [part.subkey for part in parts if part.subkey is not None]
    if len(set(named)) != len(named):
        raise InvalidInput(f"sub-key {max(named, key=named.count)} is counted twice; every sub-key counts once")
    counted = [part for part in parts if not part.disclosed]
    shown = counted or [min(parts, key=lambda part: part.log2_p)]
    if len(shown) == 1:
        only = shown[0]
        log2_p, log2_e, null = only.log2_p, only.log2_e, only.null
    else:
        log2_e = sum(part.log2_e for part in shown)
        log2_p = log2_p_from_log2_e(log2_e)
        null = "product of the e-values of independent sub-keys; p <= 1/E (Markov)"
    return Evidence(
        method=method,
        matches=sum(part.matches for part in shown),
        trials=sum(part.trials for part in shown),
        log2_p=quotable(charge_looks(log2_p, looks)),
        log2_e=log2_e,
        null=null,
        access="+".join(sorted({part.access for part in parts})),
        bound=all(part.bound for part in parts),
        looks=looks,
        warnings=list(dict.fromkeys(text for part in parts for text in part.warnings)),
        parts=list(parts),
        basis=min((part.basis for part in parts), key=list(Basis).index),
        subkey=shown[0].subkey if len(shown) == 1 else None,
        disclosed=not counted,
        capped=next((part.capped for part in parts if part.capped), ""),
        queries=sum(part.queries for part in shown),
        unusable=sum(part.unusable for part in shown),
    )
