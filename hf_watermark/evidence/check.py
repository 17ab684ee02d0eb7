"""What a verifier decides before a check, the words of its outcome, and the limits that apply."""

import math
from dataclasses import dataclass
from enum import StrEnum


class Access(StrEnum):
    """What a verifier may see of a suspect."""

    WEIGHTS = "weights"
    PROBABILITIES = "probabilities"
    LABELS = "labels"


class Verdict(StrEnum):
    """
    The outcome of one check.

    Attributes:
        FOUND: "mark found": by chance at most as often as the level of the claim allows.
        NOT_FOUND: "not found": the mark could have been seen, and was not. That does not say that the model is independent.
        INCONCLUSIVE: "inconclusive": something hinders a verdict; [`Evidence`] gives the reason.
        INVALID: "invalid claim": the key or the statement does not hold, so the suspect was not looked at.

    Example:

    ```python
    >>> verify("my-model", key).verdict is Verdict.FOUND
    True
    ```
    """

    FOUND = "mark found"
    NOT_FOUND = "not found"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid claim"


class Strength(StrEnum):
    """How small a p-value is (PROTOCOL.md §0.2)."""

    NONE = "none"
    SELF_CHECK = "self-check"
    B = "B"
    N = "N"

    @staticmethod
    def asked(bound: bool) -> "Strength":
        """What a claim asks for: `B` for a key that is bound to a public beacon, `N` for any other."""
        return Strength.B if bound else Strength.N


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


def once_in(log2_p: float) -> int:
    """How many zeros: an unrelated key does as well once in 10 to this power."""
    return int(-log2_p * math.log10(2))


def level_limit(bound: bool) -> float:
    """log2 p of the level that a claim asks for."""
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


class SkipKind(StrEnum):
    """Why something was not checked."""

    ACCESS = "access"  # the suspect does not offer what the method reads
    BUDGET = "budget"  # it would have asked more than was allowed
    UNREADABLE = "unreadable"  # the suspect is not in a form that can be read under this key
    OTHER = "other"


@dataclass(frozen=True)
class Skipped:
    """
    Args:
        method (`str`):
            What was not checked: a method, or a sub-key of one.
        reason (`str`):
            Why, in words.
    """

    method: str
    reason: str
    kind: SkipKind

    def __str__(self) -> str:
        return f"{self.method} was not checked: {self.reason}"

    def to_dict(self) -> dict[str, str]:
        return {"method": self.method, "reason": self.reason, "kind": str(self.kind)}
