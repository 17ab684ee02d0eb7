"""`Evidence`: the result of one check."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

from ..statistics import LOG2_P_FLOOR
from .check import LEVEL_B, LEVEL_N, MOST_UNUSABLE, SELF_CHECK, Access, Basis, Skipped, Strength, Verdict, level_limit


# The method of evidence whose parts are the evidences of several methods.
COMBINED = "combined"


@dataclass
class Evidence:
    """
    The result of one check.

    Args:
        method (`str`):
            Method name, or [`COMBINED`].
        matches (`int`):
            How many of the trials agree with the key (summed over sub-keys in combined evidence).
        trials (`int`):
            How many bits or answers say anything.
        log2_p (`float`):
            log2 of the p-value, looks already charged. Never below -256, the smallest value that is ever quoted.
        log2_e (`float`):
            log2 of the e-value; e-values of different sub-keys multiply.
        null (`str`):
            The null hypothesis and its law, in words.
        access (`frozenset[Access]`):
            What was read of the suspect; empty where nothing was.
        bound (`bool`):
            Whether the key is bound to a public beacon, so that level B is enough.
        looks (`int`):
            Number of looks charged.
        reason (`str`):
            Why the verdict is what it is.
        verdict ([`Verdict`]):
            As `decide` set it.
        warnings (`list[str]`):
            What a reader should know.
        skipped (`list[Skipped]`):
            What was not checked, and why. The same stands among the warnings, in words.
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
        queries (`int`):
            Images asked.
        unusable (`int`):
            Answers among them that could not be used.

    Example:

    ```python
    >>> evidence = verify("my-model", WatermarkKey.load("keys/my-model"))
    >>> print(evidence.verdict)
    mark found
    >>> evidence.matches, evidence.trials, evidence.log2_p
    (256, 256, -256.0)
    ```
    """

    method: str
    matches: int
    trials: int
    log2_p: float
    log2_e: float
    null: str
    access: frozenset[Access]
    bound: bool = False
    looks: int = 1
    reason: str = ""
    verdict: Verdict = Verdict.NOT_FOUND
    warnings: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
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
    def level(self) -> Strength:
        """Strength of the p-value alone."""
        for strength, limit in ((Strength.N, LEVEL_N), (Strength.B, LEVEL_B), (Strength.SELF_CHECK, SELF_CHECK)):
            if self.log2_p <= limit:
                return Strength.SELF_CHECK if self.capped else strength
        return Strength.NONE

    @property
    def by_method(self) -> dict[str, "Evidence"]:
        """The evidence of each method, by its name."""
        return {part.method: part for part in (self.parts if self.method == COMBINED else [self])}

    @property
    def read_from(self) -> str:
        """What was read of the suspect, in words."""
        return "+".join(sorted(self.access)) or "none"

    @property
    def found(self) -> bool:
        """Whether the verdict is "mark found"."""
        return self.verdict is Verdict.FOUND

    def decide(self) -> "Evidence":
        """Sets verdict and reason from the p-value, the level that applies and the controls; returns itself."""
        limit, level = level_limit(self.bound), Strength.asked(self.bound)
        said = self._strength()
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
                f"{said} is strong for the owner's own monitoring, but a claim at level {level} asks for {limit:.0f}"
            )
        elif (shown := self._shown()) is not None:
            self.verdict, self.reason = Verdict.INCONCLUSIVE, f"{shown._only_disclosed()}; of the secret ones, {said}"
        elif self.unread:
            self.verdict, self.reason = (
                Verdict.INCONCLUSIVE,
                f"{said}, but {self.unread}" if self.trials else self.unread,
            )
        elif self.unusable > MOST_UNUSABLE * self.queries:
            self.verdict = Verdict.INCONCLUSIVE
            self.reason = f"{said}, but {self.unusable} of {self.queries} answers could not be used: a mark could not have been seen"
        elif not self.trials:
            self.verdict = Verdict.INCONCLUSIVE
            self.reason = f"{said}, but nothing that was read says anything about a mark: it could not have been seen"
        else:
            self.verdict, self.reason = Verdict.NOT_FOUND, f"{said}, level {level} asks for {limit:.0f}"
        return self

    def _strength(self) -> str:
        """The p-value, and what the looks cost, as it stands in a sentence."""
        number = in_figures(self.log2_p, self.looks)
        bits = f"{math.log2(self.looks):.2g}"
        charged = f" ({bits} bit{'s' if bits != '1' else ''} charged for {self.looks} looks)" if self.looks > 1 else ""
        return f"log2 p {number if number.startswith('<') else f'= {number}'}{charged}"

    def _shown(self) -> "Evidence | None":
        """A disclosed sub-key whose mark is there although it counts for nothing."""
        leaves = [leaf for part in self.parts for leaf in (part.parts or [part])]
        return next((leaf for leaf in leaves if leaf.disclosed and leaf.log2_p <= SELF_CHECK), None)

    def _only_disclosed(self) -> str:
        if self.log2_p <= SELF_CHECK:
            which = (
                "the public sub-key" if self.subkey in (0, None) else f"sub-key {self.subkey}, which was disclosed,"
            )
            return f"only {which} was found ({self._strength()}): anybody could have planted it"
        return "only disclosed sub-keys were read, and these prove nothing; check with a key that has others"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, as `evidence.json` holds it; parts are nested."""
        return {
            "method": self.method,
            "verdict": str(self.verdict),
            "reason": self.reason,
            "level": str(self.level),
            "matches": self.matches,
            "trials": self.trials,
            "log2_p": round(self.log2_p, 3),
            "log2_e": round(self.log2_e, 3),
            "null": self.null,
            "access": self.read_from,
            "bound_to_beacon": self.bound,
            "basis": str(self.basis),
            "subkey": self.subkey,
            "disclosed": self.disclosed,
            "queries": self.queries,
            "unusable_answers": self.unusable,
            "looks": self.looks,
            "warnings": self.warnings,
            "skipped": [skipped.to_dict() for skipped in self.skipped],
            "controls": self.controls,
            "details": self.details,
            "parts": [part.to_dict() for part in self.parts],
        }

    def to_json(self) -> str:
        """The same as text, keys in order."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    def __str__(self) -> str:
        counts = f"{self.matches}/{self.trials} matches"
        return f"{self.verdict} ({self.basis}) [{self.method}]: {self._strength()}, {counts}"


def in_figures(log2_p: float, looks: int = 1) -> str:
    """A log2 p for people: with `<=` where it is the smallest that is ever quoted, and the true one may be smaller."""
    capped = log2_p <= LOG2_P_FLOOR + math.log2(looks)
    return f"{'<= ' if capped else ''}{log2_p:.1f}"
