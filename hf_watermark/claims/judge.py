"""One claim before a judge who has the opening and nothing else: everything is derived again (PROTOCOL.md §2.8)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from ..evidence import Access, Basis, Check, Strength, Verdict
from ..keys import CommitmentProblem, ProblemKind, in_words
from ..mapping import method_entry
from ..publishing.statement import Statement
from ..serialization import canonical_json
from ..suspects.source import Source
from .belonging import opening_problems, spent_problems
from .controls import controls_of, doubt_of, name_reference
from .disclosure import Disclosure
from .judgement import Judgement, Step
from .levels import check
from .log import Ledger
from .order import Order, order_of
from .reading import Model, Reader
from .report import LevelReport, Outcome


LEARNED = "asked, not read: the suspect learned the marked behaviour; that it descends from the weights takes a white-box mark"


class Dismissed(Exception):
    """The claim is inadmissible; the suspect is not looked at."""


def judge(
    disclosure: Disclosure,
    suspect: Any,
    statement: Source | str | Path,
    nonce: str | None = None,
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
        nonce (`str`, *optional*):
            What the judge asked the claimant to sign.
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
            scaled or widened is read in its coordinates, and in those of the published model where it is not given. These count only with
            dates, and with a relative among `unmarked` ([`COMMON_ORIGIN`]).
        log (`str` or `Path`, *optional*):
            The judge's own record of openings ([`~claims.log.Log`]); begun where it is missing. A sub-key that is in it under another nonce
            is spent, and earlier looks of the same commitment at the same suspect are charged.

    Returns:
        [`Judgement`]: verdict, reason, steps and transcript. A suspect that cannot be read, or a claimant's model that cannot, is
        `inconclusive`.

    Raises:
        [`~serialization.InvalidInput`]: when statement or suspect are not there or cannot be reached, or the log was edited.
    """
    source = Source.open(statement, token)
    model = Model(suspect, token)
    report = check(source, roots, public_key, beacon=beacon, token=token, now=now)
    steps: list[Step] = []
    result = Judgement(
        Verdict.INVALID,
        "",
        Strength.N,
        max(1, looks),
        steps,
        None,
        {},
        report,
        _inputs(disclosure, source, model, nonce, report),
    )
    ledger: Ledger | None = None
    try:
        statement_ = _admit(disclosure, source, report, nonce, steps)
        ledger = _ledger(disclosure, statement_, log)
        result.own_looks = 0
        _step(
            "sub-key",
            [*spent_problems(disclosure.opening.index, disclosure.nonce, statement_), *ledger.spent()],
            steps,
        )
        order = order_of(report, suspect_time)
        result.level = _level(order, steps)
        result.own_looks = max(1, looks) * (1 if drawn else len(disclosure.opening.used))
        reader = result.reader = Reader(
            disclosure.opening, source, statement_, None if start is None else Model(start, token)
        )
        _look(result, reader, model, order, _earlier(ledger, model, steps), drawn, unmarked or {})
    except Dismissed as dismissed:
        result.reason = str(dismissed)
    if ledger is not None and not ledger.spent():
        seen = model.digest if log is not None and result.evidence is not None else None
        ledger.note(seen, result.own_looks, result.verdict)
    return result


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
    plan = Check(
        bound=order.bound,
        looks=result.own_looks + earlier,
        basis=Basis.CLAIM,
        disclosed=opening.disclosed,
    )
    result.looks = plan.looks * (2 if reader.aligns else 1)
    # What the commitment says, and not what the statement lists or what was opened since: the claimant has both in his hand.
    chosen = "drawn by the judge" if drawn else "chosen by the claimant: all committed sub-keys are charged"
    twice = ", read directly and aligned" if reader.aligns else ""
    before = f", {earlier} earlier looks" if earlier else ""
    steps.append(
        Step("looks", Outcome.PASSED, f"sub-key {opening.index}, {chosen}{before}{twice} ({result.looks} looks)")
    )
    result.inputs["suspect"] = model.fixed
    result.controls = controls_of(reader, plan, unmarked, steps)
    result.doubt = doubt_of(order, result.controls, unmarked)
    evidence = reader.read(model, replace(plan, doubt=result.doubt))
    result.evidence, result.verdict, result.reason = evidence, evidence.verdict, evidence.reason
    if evidence.trials:
        steps.append(Step("suspect", Outcome.PASSED, f"log2 p = {evidence.log2_p:.1f}"))
    else:
        steps.append(Step("suspect", Outcome.OPEN, evidence.reason))
    name_reference(reader, evidence, order, unmarked, result.controls, steps)
    if method_entry(opening.assignment.method).access != Access.WEIGHTS:
        steps.append(Step("scope", Outcome.OPEN, LEARNED))
    failed = [step.detail for step in steps if step.is_control and step.outcome is Outcome.FAILED]
    if failed and result.verdict is not Verdict.INVALID:
        result.verdict, result.reason = Verdict.INCONCLUSIVE, f"a control failed: {failed[0]}"


def _admit(
    disclosure: Disclosure, source: Source, report: LevelReport, nonce: str | None, steps: list[Step]
) -> Statement:
    """Statement, owner's consent and commitment."""
    for name in ("V0", "V1", "V2"):
        level = report[name]
        steps.append(Step(f"statement {name}", level.outcome, "; ".join(level.reasons) or "holds"))
        if level.outcome is Outcome.FAILED or (name == "V0" and level.outcome is Outcome.OPEN):
            raise Dismissed(f"{name}: {'; '.join(level.reasons)}")
    assert report.signed is not None  # V0 passed
    _step("consent", disclosure.problems(nonce), steps)
    statement, opening = report.signed.statement, disclosure.opening
    _step("commitment", opening_problems(opening, statement), steps)
    # What is left can only be the source images, which the claimant sends along.
    _step("source images", opening.problems(), steps)
    return statement


def _step(name: str, problems: Sequence[CommitmentProblem], steps: list[Step]) -> None:
    steps.append(Step(name, Outcome.FAILED if problems else Outcome.PASSED, in_words(problems) or "holds"))
    if problems:
        raise Dismissed(in_words(problems))


def _level(order: Order, steps: list[Step]) -> Strength:
    """`B` only where beacon, two authorities and the suspect's date are there; a suspect older than the mark ends the claim."""
    if order.older is not None:
        _step("dates", [CommitmentProblem(ProblemKind.DATES, order.older)], steps)
    missing = f": {'; '.join(order.missing)}" if order.missing else ""
    outcome = Outcome.OPEN if order.missing else Outcome.PASSED
    steps.append(Step("dates", outcome, f"level {order.level}{missing}"))
    return order.level


def _ledger(disclosure: Disclosure, statement: Statement, log: str | Path | None) -> Ledger:
    assert disclosure.consent is not None  # was checked
    opening = disclosure.opening
    return Ledger(log, opening.precommit.hex(), opening.index, disclosure.consent.nonce, statement.digest)


def _earlier(ledger: Ledger, model: Model, steps: list[Step]) -> int:
    """Earlier looks to be charged, by the judge's own log."""
    if ledger.path is None:
        steps.append(Step("log", Outcome.OPEN, "no log was kept: what the claimant opened here before is not known"))
        return 0
    earlier = ledger.earlier_looks(model.digest)
    detail = f"{len(ledger.mine)} openings of this commitment before; {earlier} earlier looks at this suspect"
    steps.append(Step("log", Outcome.PASSED, detail))
    return earlier


def _inputs(
    disclosure: Disclosure, source: Source, model: Model, nonce: str | None, report: LevelReport
) -> dict[str, Any]:
    digest = None if report.signed is None else report.signed.statement.digest
    return {
        "opening_sha256": hashlib.sha256(canonical_json(disclosure.to_dict())).hexdigest(),
        "subkey": disclosure.opening.index,
        "method": disclosure.opening.assignment.method,
        "nonce": nonce,
        "statement": {"source": source.name, "commit": source.commit, "sha256": digest},
        "suspect": {"name": model.name},
    }


__all__ = ["Disclosure", "Judgement", "Step", "judge"]
