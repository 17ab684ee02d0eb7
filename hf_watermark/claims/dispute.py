"""
Two claimants over one model: who built on whom (PROTOCOL.md §2.9, E8).

| X in the suspect | Y in the suspect | X in the published model of Y | Y in that of X | verdict |
|---|---|---|---|---|
| no | no | | | no finding |
| yes | no | | | the suspect descends from X's mark |
| no or yes | inconclusive | | | the same, and what Y's mark would change stays open |
| yes | yes | yes | no | Y built on X: X is upstream |
| yes | yes | no | yes | X built on Y: Y is upstream |
| yes | yes | both or neither | | the committed originals are looked at |

A statement that names the other's key as the origin of its model (`derived_from`) is an admission, and settles what published models leave open.
An original speaks against its owner only: the other's mark in it is an admission, and so is withholding it. That a mark is *not* in it
proves nothing, because everybody can seal a model that has nothing to do with his own. So no original, forged or unrelated, helps whoever
sealed it, and it need not be related to his published model to count against him.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ..evidence import Basis, Check, Evidence, Verdict
from ..publishing.findings import LevelReport
from ..publishing.order import Order, order_of
from ..publishing.publication import Publication
from ..publishing.statement import parse_date
from ..serialization import InvalidInput
from ..suspects.source import Source
from .controls import doubt_of
from .disclosure import Disclosure
from .judge import judge
from .judgement import Judgement
from .reading import Model


@dataclass(frozen=True)
class Claimant:
    """
    Args:
        name (`str`):
            How the verdict calls this side.
        nonce (`str`):
            The judge's name for this dispute, which this side was asked to sign.
        original (`str` or `Path`, *optional*):
            The model that this side started from, as committed in its statement; withholding it counts against this side. Where its
            statement commits to none, none is looked at.
        first_seen (`datetime`, *optional*):
            Earliest appearance of this side's *published* model that the judge believes; by default what its statement proves. Give it where
            the model was public before its statement.
        start (`str` or `Path`, *optional*):
            The model that this side's key was made for; see [`judge`].
    """

    name: str
    disclosure: Disclosure
    statement: Publication | Source | str | Path
    nonce: str
    original: str | Path | None = None
    first_seen: datetime | None = None
    start: str | Path | None = None


@dataclass
class DisputeResult:
    """
    Args:
        answers (`dict[str, bool]`):
            The columns of the table that were needed.
        upstream (`list[str]`):
            Sides whose mark is older in this lineage; empty for no finding, both where the order stays open.
        conclusive (`bool`):
            Whether the order is decided.
        readings (`dict[str, Evidence]`):
            What was read for each answer about a published model or an original.
    """

    answers: dict[str, bool]
    notes: list[str]
    upstream: list[str]
    conclusive: bool
    verdict: str
    judgements: dict[str, Judgement] = field(default_factory=dict)
    readings: dict[str, Evidence] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": "hf-watermark/dispute/v2",
            "answers": self.answers,
            "notes": self.notes,
            "upstream": self.upstream,
            "conclusive": self.conclusive,
            "verdict": self.verdict,
            "transcripts": {name: judgement.transcript for name, judgement in self.judgements.items()},
            "readings": {question: evidence.to_dict() for question, evidence in self.readings.items()},
        }


def dispute(first: Claimant, second: Claimant, suspect: Any, **judging: Any) -> DisputeResult:
    """
    Searches both marks in the suspect; if both are there, each in the other's published model; and if that decides nothing, each in what
    the other committed to as its original.

    Args:
        judging (*optional*):
            What [`judge`] takes: `roots`, `suspect_time`, `drawn`, `unmarked`, `log`, ...

    Returns:
        [`DisputeResult`]: with the row of the table. The output is lineage; licence terms decide the rest.
    """
    if first.name == second.name:
        raise ValueError(f"both claimants are called {first.name!r}; name them apart")
    judgements = {
        side.name: judge(side.disclosure, suspect, side.statement, nonce=side.nonce, start=side.start, **judging)
        for side in (first, second)
    }
    result = DisputeResult({}, [], [], True, "no finding", judgements)
    for name, judgement in judgements.items():
        result.answers[f"{name} in the suspect"] = judgement.found
        if not judgement.found:
            result.notes.append(f"{name}: {judgement.verdict}, {judgement.reason}")
    result.upstream = [name for name, judgement in judgements.items() if judgement.found]
    if len(result.upstream) < 2:
        _say_of_the_suspect(result)
    else:
        _decide(_Pair(first, second, result, judging.get("token"), judging.get("unmarked") or {}))
    return result


def _say_of_the_suspect(result: DisputeResult) -> None:
    """Where at most one mark was found in the suspect. A mark that could not have been seen is not one that is not there."""
    unseen = [name for name, judgement in result.judgements.items() if judgement.verdict is Verdict.INCONCLUSIVE]
    result.conclusive = not unseen
    said = [f"the suspect descends from {name}'s mark" for name in result.upstream] or ["no finding"]
    result.verdict = "; ".join([*said, *(f"whether the suspect carries {name}'s mark stays open" for name in unseen)])


@dataclass(frozen=True)
class _Pair:
    """Two claimants whose marks are both in the suspect."""

    first: Claimant
    second: Claimant
    result: DisputeResult
    token: str | bool | None
    unmarked: Mapping[str, Any]

    @property
    def directions(self) -> tuple[tuple[Claimant, Claimant], ...]:
        return (self.first, self.second), (self.second, self.first)

    def report(self, side: Claimant) -> LevelReport:
        return self.result.judgements[side.name].report

    def ask(self, side: Claimant, question: str, model: Any, order: Order) -> bool:
        """Whether `side`'s mark is in a model of the other's; read as the suspect was, by the dates of that model."""
        if order.bar is not None:
            self.result.answers[question] = False
            self.result.notes.append(f"{question}: {order.bar.reason}")
            return False
        judgement = self.result.judgements[side.name]
        assert judgement.reader is not None  # its mark was found
        check = Check(
            bound=order.bound,
            looks=max(1, judgement.own_looks),
            basis=Basis.CLAIM,
            disclosed=judgement.reader.opening.disclosed,
            # Dates are those of this model; what is known of a common origin was found out with the suspect.
            doubt=doubt_of(order, judgement.controls, self.unmarked),
        )
        evidence = judgement.reader.read(Model(model, self.token), check)
        self.result.readings[question] = evidence
        self.result.answers[question] = evidence.found
        if evidence.verdict is Verdict.INCONCLUSIVE:
            self.result.notes.append(f"{question}: inconclusive, {evidence.reason}")
        return evidence.found


def _decide(pair: _Pair) -> None:
    named = {side.name: _is_named(pair, side, other) for side, other in pair.directions}
    published = {side.name: _in_published(pair, side, other) for side, other in pair.directions}
    if _is_settled(pair, published) or _is_settled(pair, named):
        return
    admitted = {side.name: _is_admitted(pair, side, other) for side, other in pair.directions}
    if _is_settled(pair, admitted):
        return
    _leave_open(pair, published, admitted)


def _is_settled(pair: _Pair, inside: Mapping[str, bool]) -> bool:
    """Whether exactly one mark is in what the other made; then that one is upstream."""
    for side, other in pair.directions:
        if inside[side.name] and not inside[other.name]:
            pair.result.upstream = [side.name]
            pair.result.verdict = f"{other.name} built on {side.name}: {side.name} is upstream"
            return True
    return False


def _in_published(pair: _Pair, side: Claimant, other: Claimant) -> bool:
    question, what = (
        f"{side.name} in the published model of {other.name}",
        f"{other.name}'s published model",
    )
    proven, stated = first_appearance(other, pair.report(other))
    order = order_of(pair.report(side), proven, what)
    if proven is None and stated is not None:
        # His own date binds him: he cannot say that his model is older than that. Where it would help him, it is no date at all.
        own = order_of(pair.report(side), stated, what)
        order = order if own.bar is not None else own
    return pair.ask(side, question, pair.report(other).publication, order)


def first_appearance(side: Claimant, report: LevelReport) -> tuple[datetime | None, datetime | None]:
    """
    When a claimant's published model appeared: what is proven, and what he says himself.

    A statement that replaces an earlier one says nothing about the first appearance: the model may be as old as the first of them.
    """
    statement = report.publication.statement
    if side.first_seen is not None:
        times = (side.first_seen, report.dates.first_statement)
        return min(time for time in times if time is not None), None
    if statement.supersedes is not None:
        return None, None
    return report.dates.first_statement, parse_date(statement.created)


def _is_named(pair: _Pair, side: Claimant, other: Claimant) -> bool:
    """Whether `other` signed that its model was made from one with `side`'s key. That speaks against `other` only, who could leave it out."""
    theirs = pair.report(side).publication.statement
    origins = pair.report(other).publication.statement.derived_from
    found = any((item.precommit, item.public_key) == (theirs.precommit, theirs.public_key) for item in origins)
    if found:
        pair.result.answers[f"{other.name} names {side.name} as its origin"] = True
    return found


def _is_admitted(pair: _Pair, side: Claimant, other: Claimant) -> bool:
    """Whether `other` admits, by what it committed to as its original, that it started from `side`'s model."""
    report, question = pair.report(other), f"{side.name} in the original of {other.name}"
    committed = report.publication.statement.original_tensor_set_sha256
    if committed is None:
        if other.original is not None:
            pair.result.notes.append(
                f"{other.name}'s statement commits to no original: what was delivered is not read"
            )
        return False
    try:
        original = _delivered(other, committed, pair.token)
    except InvalidInput as error:
        pair.result.answers[question] = True
        pair.result.notes.append(
            f"{other.name} delivers no committed original ({error}); this counts as if {side.name}'s mark were in it"
        )
        return True
    # When an original first appeared nobody can say, and it may be a public base: what is found by aligning it counts for nothing.
    return pair.ask(side, question, original, order_of(pair.report(side), None, f"{other.name}'s original"))


def _delivered(side: Claimant, committed: str, token: str | bool | None) -> Publication:
    if side.original is None:
        raise InvalidInput("its statement commits to an original, which is withheld")
    original = Publication.read(side.original, token)
    if original.tensor_set_sha256 != committed:
        raise InvalidInput("what was delivered is not what its statement commits to")
    return original


def _leave_open(pair: _Pair, published: Mapping[str, bool], admitted: Mapping[str, bool]) -> None:
    result, earlier = pair.result, _earlier(pair)
    result.upstream, result.conclusive = [pair.first.name, pair.second.name], False
    if all(published.values()):
        # The older of two models that carry both marks shows that both marks are older still, and not which of them is.
        result.verdict = (
            "each published model carries both marks: one was published again later, and the order is open"
        )
    elif not all(admitted.values()):
        result.verdict = "the suspect merges both, and neither published model carries the other's mark: both are upstream, the order is open"
    elif earlier is not None:
        result.upstream, result.conclusive = [earlier], True
        result.verdict = (
            f"one of the originals is none; {earlier}'s statement, which binds its model, is the older one"
        )
        return
    else:
        result.verdict = "one of the originals is none, and no trusted timestamp says whose statement is older"
    if earlier is not None:
        result.notes.append(f"{earlier}'s statement is the older one")


def _earlier(pair: _Pair) -> str | None:
    """Whose statement has the older trusted date; its digests are inside the statement, and were checked (V1)."""
    times = {side.name: pair.report(side).dates.statement for side in (pair.first, pair.second)}
    first, second = times[pair.first.name], times[pair.second.name]
    if first is None or second is None or first == second:
        return None
    return pair.first.name if first < second else pair.second.name


__all__ = ["Claimant", "DisputeResult", "dispute", "first_appearance"]
