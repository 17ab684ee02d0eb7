"""A check that rests on a verified statement, for whoever holds the key: basis `claim` (PROTOCOL.md §2.4, E12)."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from ..evidence import Basis, Check, Evidence, Verdict
from ..keys import CommitmentProblem, Opening, ProblemKind, WatermarkKey
from ..mapping import METHODS
from ..publishing.belonging import disclosed_by, key_problems, opening_problems
from ..publishing.findings import LevelReport, Outcome
from ..publishing.order import order_of
from ..publishing.publication import Publication
from ..publishing.revocation import SignedRevocation
from ..publishing.statement import Statement
from ..suspects import Suspect
from ..suspects.source import Source
from ..verification.verifier import invalid_claim, undecided
from ..verifying import refuse_looks, run_check
from .controls import doubt_of
from .levels import check
from .reading import Model, Reference


def verify_claim(
    suspect: Any,
    key: WatermarkKey | Opening,
    statement: Publication | Source | str | Path,
    roots: Sequence[x509.Certificate] = (),
    public_key: str | None = None,
    beacon: bytes | None = None,
    suspect_time: datetime | None = None,
    looks: int = 1,
    budget: int | None = None,
    reference: bool | str | Path | None = None,
    token: str | bool | None = None,
    now: datetime | None = None,
    revocations: Sequence[SignedRevocation] = (),
    base: str | Path | None = None,
) -> Evidence:
    """
    [`~verifying.verify`] on the word of a published statement instead of the word of whoever gave you the key.

    The statement must be signed and fit its files (V0, V1), nothing may speak against its dates (V2), and the key must be the one that it
    describes. Sub-keys that it calls public or disclosed add no evidence. Level B is enough only where beacon, two authorities and the
    suspect's date are established, as before a [`judge`].

    Args:
        suspect, budget:
            As in [`~verifying.verify`].
        key ([`WatermarkKey`] or [`Opening`]):
            The owner's key, or one sub-key. Whoever opened it could choose among all: they are charged.
        statement (`str` or `Path`):
            Folder or repository with the published model of this key.
        roots, public_key, beacon, suspect_time, now, revocations:
            What you trust, expect, looked up, and believe; see [`judge`].
        looks (`int`, *optional*, defaults to 1):
            How many variants of this check were or will be tried.
        reference (`bool`, `str` or `Path`, *optional*):
            Folder with the model that the key was made for: read the suspect in its coordinates as well, where the direct reading does not
            find the mark. `True` stands for the statement's own model, which is taken for any other as well; what it finds counts only before
            a [`judge`], who looks at common ancestors too.
        base (`str` or `Path`, *optional*):
            As in [`~verifying.verify`], for a key that marks an adapter.

    Returns:
        [`Evidence`]: of basis `claim`; `invalid claim` with the reasons where statement and key do not hold.

    Raises:
        [`~serialization.InvalidInput`]: when statement or suspect are not there, or cannot be reached.
    """
    refuse_looks(looks)
    report = check(statement, roots, public_key, beacon=beacon, token=token, now=now, revocations=revocations)
    publication = report.publication
    problems = _statement_problems(report) or _key_problems(key, publication.statement)
    if problems:
        return invalid_claim(problems)
    order = order_of(report, suspect_time)
    if order.bar is not None and order.bar.verdict is Verdict.INVALID:
        return invalid_claim([order.bar.reason])
    plan = Check(
        bound=order.bound,
        looks=looks * (len(key.used) if isinstance(key, Opening) else 1),
        budget=budget,
        basis=Basis.CLAIM,
        disclosed=disclosed_by(key, publication.statement),
        # Nobody looks at a common ancestor here, so only the committed start counts as a reference.
        doubt=doubt_of(order, {}, {}),
    )
    if order.bar is not None:
        return undecided(order.bar.reason, plan)
    if isinstance(suspect, str | Path) and token is not None:
        suspect = Suspect.open(suspect, key.backbone, token)
    if not reference:
        return run_check(suspect, key, plan, base=base)
    start = None if reference is True else Model(reference, token)
    if start is not None:
        start.reach()
    taken = Reference(key, publication, start)
    return taken.noted(run_check(suspect, key, plan, later=lambda: taken.model, base=base))


def _statement_problems(report: LevelReport) -> list[CommitmentProblem]:
    found = []
    for name, needed in (("V0", True), ("V1", True), ("V2", False)):
        level = report[name]
        if level.outcome is Outcome.FAILED or (needed and level.outcome is not Outcome.PASSED):
            found.append(CommitmentProblem(ProblemKind.STATEMENT, str(level)))
    # Where V0 does not hold, the others were not looked at.
    return found[:1]


def _key_problems(key: WatermarkKey | Opening, statement: Statement) -> list[CommitmentProblem]:
    """Why key and statement do not belong together."""
    if isinstance(key, Opening):
        return opening_problems(key, statement, METHODS) or key.problems()
    return key_problems(key, statement, METHODS)


__all__ = ["verify_claim"]
