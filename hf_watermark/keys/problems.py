"""Why no verdict may rest on what a claimant shows: a kind for code, a sentence for people."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class ProblemKind(StrEnum):
    """What does not hold."""

    OWNER = "owner"  # another owner's, or another key of this owner
    SIGNATURE = "signature"  # the owner did not sign it
    CONSENT = "consent"  # not opened for this dispute
    METHODS = "methods"  # methods, their parameters or the model record are not the committed ones
    TREE = "tree"  # not in the committed tree of sub-keys
    SUBKEY = "sub-key"  # no sub-key of this method, or one that does not follow from the commitment
    SPENT = "spent"  # others may know this sub-key
    BEACON = "beacon"
    POOL = "pool"  # source images are missing, or are not the committed ones
    STATEMENT = "statement"  # the statement contradicts itself or its files
    DATES = "dates"


@dataclass(frozen=True)
class CommitmentProblem:
    """
    Args:
        kind ([`ProblemKind`]):
            What does not hold; compare this, never the text.
        text (`str`):
            The sentence that a reader sees; `str(problem)` gives it.
    """

    kind: ProblemKind
    text: str

    def __str__(self) -> str:
        return self.text


def in_words(problems: Iterable[CommitmentProblem | str]) -> str:
    """All of them as one line."""
    return "; ".join(map(str, problems))
