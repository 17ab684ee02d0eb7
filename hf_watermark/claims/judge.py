"""One claim before a judge who has the opening and nothing else: everything is derived again (PROTOCOL.md §2.8)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from ..evidence import Basis, Check, Strength, Verdict
from ..keys import CommitmentProblem
from ..mapping import METHODS, AutoVerifier
from ..publishing.belonging import opening_problems, spent_problems
from ..publishing.findings import LevelReport, Outcome
from ..publishing.order import Order, order_of
from ..publishing.publication import Publication
from ..publishing.revocation import SignedRevocation
from ..publishing.statement import Statement
from ..serialization import InvalidInput
from ..suspects.source import Source
from .asking import ONLY_PUBLISHED, aligned_to_published, requests_of
from .controls import controls_of, doubt_of, name_reference
from .disclosure import Disclosure
from .judgement import Dismissed, Judgement, Steps
from .levels import check
from .log import Ledger
from .reading import Model, Reader, Reference


LEARNED = "asked, not read: the suspect learned the marked behaviour; that it descends from the weights takes a white-box mark"

ORIGIN = "the claimant says that its model was made from one with the key"
NOT_ASKED = "Whether the suspect carries that one too is another claim, which its owner makes"
NAMELESS = "no name of the dispute was given (`nonce`), so a replay would not be noticed; give the name that you asked the claimant to sign"


def judge(
    disclosure: Disclosure,
    suspect: Any,
    statement: Publication | Source | str | Path,
    nonce: str,
    roots: Sequence[x509.Certificate] = (),
    public_key: str | None = None,
    beacon: bytes | None = None,
    suspect_time: datetime | None = None,
    drawn: bool = False,
    looks: int = 1,
    unmarked: Mapping[str, Any] | None = None,
    start: Any = None,
    token: str | bool | None = None,
    now: datetime | None = None,
    log: str | Path | None = None,
    revocations: Sequence[SignedRevocation] = (),
) -> Judgement:
    """
    Judges the claim that `suspect` carries the mark of a statement.

    A white-box mark that is not read directly is looked for once more in the coordinates of the claimant's published model. That look is
    charged in any case, and counts only where the statement has a trusted date before `suspect_time`.

    Args:
        disclosure ([`Disclosure`]):
            The opened sub-key.
        suspect:
            Folder, `owner/name[@revision]`, module, or a function from images to labels or probabilities.
        statement (`str` or `Path`):
            Folder or repository with the claimant's published model.
        nonce (`str`):
            The judge's name for this dispute, which they asked the claimant to sign. An opening for another one is a replay.
        roots, public_key, beacon:
            What the judge trusts, expects and looked up; see [`check`].
        suspect_time (`datetime`, *optional*):
            Earliest appearance of the suspect that the judge believes. Unknown: level N is asked for, and nothing that was aligned to the
            claimant's published model counts.
        drawn (`bool`, *optional*, defaults to `False`):
            Whether the judge chose the sub-key. If not, every sub-key that the claimant could have picked is charged as a look.
        looks (`int`, *optional*, defaults to 1):
            Further variants that were tried: suspect snapshots, preprocessings.
        unmarked (`Mapping`, *optional*):
            Models by name that do not carry the mark (the owner's twin, the public base, null models): controls that must not pass.
        start (`nn.Module`, `str` or `Path`, *optional*):
            What the claimant delivers as the model that his key was made for; checked against his commitment. A suspect that was permuted,
            scaled or widened is read in its coordinates, and in those of the published model where it is not given or is another one. These
            count only with dates, and with a relative among `unmarked` ([`COMMON_ORIGIN`]). With another one nothing is "not found". Of a claim
            on an adapter it is the base that is taken away from a merged suspect.
        log (`str` or `Path`, *optional*):
            The judge's own record of openings ([`~claims.log.Log`]); begun where it is missing. A sub-key that is in it under another nonce
            is spent, and earlier looks of the same commitment at the same suspect are charged.
        revocations (`Sequence[SignedRevocation]`, *optional*):
            What the other side hands in, beside those that the claimant published; see [`~publishing.revocation`].

    Returns:
        [`Judgement`]: verdict, reason, steps and transcript. A suspect that cannot be read, or a claimant's model that cannot, is
        `inconclusive`.

    Raises:
        [`~serialization.InvalidInput`]: when statement or suspect are not there or cannot be reached, the dispute has no name, or the log was
            edited.
    """
    if not nonce:
        raise InvalidInput(NAMELESS)
    model, delivered = Model(suspect, token), None if start is None else Model(start, token)
    if delivered is not None:
        delivered.reach()
    report = check(statement, roots, public_key, beacon=beacon, token=token, now=now, revocations=revocations)
    result = Judgement(
        verdict=Verdict.INVALID,
        reason="",
        level=Strength.N,
        looks=max(1, looks),
        steps=Steps(),
        evidence=None,
        controls={},
        report=report,
        disclosure=disclosure,
        nonce=nonce,
        suspect={"name": model.name},
    )
    ledger: Ledger | None = None
    try:
        _refuse_broken(report, result.steps)
        statement_, opening = report.publication.statement, disclosure.opening
        for origin in statement_.derived_from:
            whose = (
                "the claimant itself" if origin.public_key == statement_.public_key else f"the owner {origin.owner}"
            )
            result.steps.note("origin", Outcome.OPEN, f"{ORIGIN} {origin.precommit[:16]} of {whose}. {NOT_ASKED}")
        for name, problems, holds in _admission(disclosure, statement_, nonce):
            result.steps.require(name, problems, holds=holds)
        assert disclosure.nonce is not None  # the owner consented
        ledger = Ledger(log, opening.precommit.hex(), opening.index, disclosure.nonce, statement_.digest)
        result.own_looks = 0
        spent = [*spent_problems(opening.index, disclosure.nonce, statement_), *ledger.spent()]
        result.steps.require("sub-key", spent)
        order = _order(report, suspect_time, result.steps)
        result.level, result.own_looks = order.level, max(1, looks) * (1 if drawn else len(opening.used))
        result.reader = Reader(opening, Reference(opening, report.publication, delivered))
        _look(result, result.reader, model, order, _earlier(ledger, model, result.steps), drawn, unmarked or {})
        assert result.evidence is not None
        result.requests = requests_of(result.reader, result.evidence, order, report, suspect_time)
    except Dismissed as dismissed:
        result.verdict, result.reason = dismissed.verdict, str(dismissed)
    if ledger is not None and not ledger.spent():
        seen = model.digest if log is not None and result.evidence is not None else None
        ledger.note(seen, result.own_looks, result.verdict)
    return result


def _refuse_broken(report: LevelReport, steps: Steps) -> None:
    """
    Raises:
        [`Dismissed`]: when there is no statement, or something speaks against it.
    """
    for level in report.levels[:3]:
        steps.require(f"statement {level.name}", level.reasons, level.outcome, f"{level.name}: ")
        if report.signed is None:
            raise Dismissed(str(level))


def _admission(
    disclosure: Disclosure, statement: Statement, nonce: str
) -> Iterator[tuple[str, list[CommitmentProblem], str]]:
    """What is asked of an opening, one after the other, with what speaks against it, and what is said where nothing does."""
    yield "consent", disclosure.problems(nonce), f"signed for the dispute {nonce}"
    yield "commitment", opening_problems(disclosure.opening, statement, METHODS), "holds"
    # What is left can only be the source images, which the claimant sends along.
    needed = AutoVerifier.for_method(disclosure.opening.assignment.method).needs_pool
    yield "source images", disclosure.opening.problems(), "holds" if needed else "not needed by this method"


def _order(report: LevelReport, appeared: datetime | None, steps: Steps) -> Order:
    """
    Level B only where beacon, two authorities and the suspect's date are there; a suspect older than the mark, and a revoked key, end the claim.
    """
    order = order_of(report, appeared)
    for revocation in report.revocations:
        steps.note("revocation", Outcome.OPEN, str(revocation))
    if order.bar is not None:
        steps.note("dates", Outcome.FAILED if order.bar.verdict is Verdict.INVALID else Outcome.OPEN, order.bar.reason)
        raise Dismissed(*order.bar)
    missing = f": {'; '.join(order.missing)}" if order.missing else ""
    steps.note("dates", Outcome.OPEN if order.missing else Outcome.PASSED, f"level {order.level}{missing}")
    return order


def _earlier(ledger: Ledger, model: Model, steps: Steps) -> int:
    """Earlier looks to be charged, by the judge's own log."""
    if ledger.path is None:
        steps.note("log", Outcome.OPEN, "no log was kept: what the claimant opened here before is not known")
        return 0
    earlier = ledger.earlier_looks(model.digest)
    detail = f"{len(ledger.mine)} openings of this commitment before; {earlier} earlier looks at this suspect"
    steps.note("log", Outcome.PASSED, detail)
    return earlier


def _look(
    result: Judgement,
    reader: Reader,
    model: Model,
    order: Order,
    earlier: int,
    drawn: bool,
    unmarked: Mapping[str, Any],
) -> None:
    """Controls, then the suspect; fills in the result."""
    opening, steps = reader.opening, result.steps
    plan = Check(bound=order.bound, looks=result.own_looks + earlier, basis=Basis.CLAIM, disclosed=opening.disclosed)
    result.looks = plan.looks * (2 if reader.aligns else 1)
    # What the commitment says, and not what the statement lists or what was opened since: the claimant has both in his hand.
    chosen = "drawn by the judge" if drawn else "chosen by the claimant: all committed sub-keys are charged"
    twice = ", read directly and aligned" if reader.aligns else ""
    before = f", {earlier} earlier looks" if earlier else ""
    charged = f"{result.looks} {'look' if result.looks == 1 else 'looks'}"
    steps.note("looks", Outcome.PASSED, f"sub-key {opening.index}, {chosen}{before}{twice} ({charged})")
    result.suspect = model.fixed
    result.controls = controls_of(reader, plan, unmarked, steps)
    result.doubt = doubt_of(order, result.controls, unmarked)
    evidence = reader.read(model, replace(plan, doubt=result.doubt))
    result.evidence, result.verdict, result.reason = evidence, evidence.verdict, evidence.reason
    if evidence.trials:
        agree = f"read: {evidence.matches} of {evidence.trials} bits or answers agree, log2 p = {evidence.log2_p:.1f}"
        steps.note("suspect", Outcome.PASSED, agree)
    else:
        steps.note("suspect", Outcome.OPEN, f"nothing was read; {evidence.reason}")
    name_reference(reader, evidence, order, unmarked, result.controls, steps)
    if reader.asks:
        steps.note("scope", Outcome.OPEN, LEARNED)
    if evidence.verdict is Verdict.NOT_FOUND and aligned_to_published(reader, evidence):
        result.reason += f". {ONLY_PUBLISHED.capitalize()}"
    failed = steps.failed_control
    if failed is not None and result.verdict is not Verdict.INVALID:
        result.verdict, result.reason = Verdict.INCONCLUSIVE, f"a control failed: {failed.detail}"


__all__ = ["judge"]
