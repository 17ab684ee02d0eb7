"""Whether a key, or one opened sub-key, belongs to a statement, and whether its sub-keys may still prove anything."""

import hashlib
from collections.abc import Container, Iterator

from ..keys import CommitmentProblem, Opening, ProblemKind, WatermarkKey, in_words
from ..serialization import InvalidInput, parse_json
from .describe import SUBKEY0
from .publication import Papers
from .statement import Statement


def published_opening(papers: Papers, statement: Statement, methods: Container[str]) -> Opening:
    """
    Sub-key 0, which its owner opened for everybody; without its source images.

    Raises:
        [`~serialization.InvalidInput`]: when it is missing, or does not belong to the statement.
    """
    raw = papers.get(SUBKEY0)
    if raw is None:
        raise InvalidInput(f"{SUBKEY0} is missing: it was stripped")
    opening = Opening.from_dict(parse_json(raw, allow_floats=True))
    problems = opening_problems(opening, statement, methods)
    if opening.index != 0:
        problems.append(CommitmentProblem(ProblemKind.SUBKEY, f"{SUBKEY0} opens sub-key {opening.index}"))
    if problems:
        raise InvalidInput(in_words(problems))
    return opening


def opening_problems(opening: Opening, statement: Statement, methods: Container[str]) -> list[CommitmentProblem]:
    """
    Why an opening does not belong to a statement; empty when it does. The pool is checked elsewhere.

    Args:
        methods (`Container[str]`): Names of the methods that exist.
    """
    return [
        *opening.commitment_problems(),
        *_unlike(opening, statement, "opening", methods),
        *_unlisted(opening, statement),
    ]


def key_problems(key: WatermarkKey, statement: Statement, methods: Container[str]) -> list[CommitmentProblem]:
    """The same for a whole key."""
    return [*key.problems(), *_unlike(key, statement, "key", methods)]


def _unlike(
    held: WatermarkKey | Opening, statement: Statement, what: str, methods: Container[str]
) -> Iterator[CommitmentProblem]:
    is_opening = isinstance(held, Opening)
    assignments = [held.assignment] if isinstance(held, Opening) else held.assignments
    shares = list(held.shares) if isinstance(held, Opening) else [assignment.share for assignment in held.assignments]
    for assignment in assignments:
        if assignment.method not in methods:
            yield CommitmentProblem(ProblemKind.METHODS, f"method `{assignment.method}` does not exist")
    if held.public_key.hex() != statement.public_key:
        other = "another owner" if is_opening else "another owner than the statement"
        yield CommitmentProblem(ProblemKind.OWNER, f"the {what} belongs to {other}")
    elif held.precommit.hex() != statement.precommit:
        yield CommitmentProblem(
            ProblemKind.OWNER,
            "the opening belongs to another key of this owner"
            if is_opening
            else "the key is not the one of the statement: it commits to something else",
        )
    if (held.beacon.hex(), held.beacon_source) != (statement.beacon, statement.beacon_source):
        yield CommitmentProblem(ProblemKind.BEACON, f"the {what} is bound to another beacon than the statement")
    # Both follow from the precommit; said all the same, so that nothing hangs on one digest.
    if held.context.digest.hex() != statement.model_sha256 or shares != statement.shares:
        yield CommitmentProblem(
            ProblemKind.METHODS, f"methods and model record of the {what} are not those of the statement"
        )


def _unlisted(opening: Opening, statement: Statement) -> Iterator[CommitmentProblem]:
    claims = [method for method in statement.methods if method.spec_sha256 == opening.assignment.spec.hex()]
    if not claims:
        yield CommitmentProblem(ProblemKind.METHODS, "the statement names no such method")
    elif opening.index not in claims[0].subkeys or claims[0].name != opening.assignment.method:
        text = f"sub-key {opening.index} is not one of `{claims[0].name}` in the statement"
        yield CommitmentProblem(ProblemKind.SUBKEY, text)


def spent_problems(index: int, nonce: str | None, statement: Statement) -> list[CommitmentProblem]:
    """Why an opened sub-key may not prove anything; an opening for this very dispute does not spoil itself."""
    if index in statement.public:
        return [CommitmentProblem(ProblemKind.SPENT, f"sub-key {index} is public: anybody could have planted it")]
    this = None if nonce is None else hashlib.sha256(nonce.encode()).hexdigest()
    if any(entry.subkey == index and entry.nonce_sha256 != this for entry in statement.disclosed):
        text = f"sub-key {index} was opened in an earlier dispute and proves nothing any more"
        return [CommitmentProblem(ProblemKind.SPENT, text)]
    return []


def disclosed_by(key: WatermarkKey | Opening, statement: Statement) -> frozenset[int]:
    """Sub-keys that others may know, by key and statement together."""
    return key.disclosed | statement.public | {entry.subkey for entry in statement.disclosed}
