"""
What the dates of a statement, and a revocation, allow to say about a model that appeared at some moment (PROTOCOL.md §2.6, §2.8, §2.11).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from ..evidence import Strength, Verdict
from .findings import CLOCKS, Dates, LevelReport, iso
from .revocation import Revocation
from .statement import Statement, parse_date


AUTHORITIES = 2


class Bar(NamedTuple):
    """Why nothing is claimed against a model: `invalid claim`, or `inconclusive` where it hangs on a date that nobody gave."""

    reason: str
    verdict: Verdict


@dataclass(frozen=True)
class Order:
    """
    Args:
        bar ([`Bar`], *optional*):
            Why this mark proves nothing about the model: it was there before, or the key was revoked.
        missing (`tuple[str, ...]`):
            What keeps the claim from level B.
        undated (`tuple[str, ...]`):
            Why the claimant's published model cannot be shown to be older than the model, so that it is no reference for it.
    """

    bar: Bar | None
    missing: tuple[str, ...]
    undated: tuple[str, ...]

    @property
    def bound(self) -> bool:
        """Whether level B is enough."""
        return not self.missing

    @property
    def level(self) -> Strength:
        return Strength.asked(self.bound)


def order_of(report: LevelReport, appeared: datetime | None, what: str = "the suspect") -> Order:
    """
    The same rules for all who judge: [`~claims.judge`], [`~claims.dispute`], [`~claims.verify_claim`].

    Args:
        report ([`LevelReport`]):
            Of a statement whose V0 passed and whose V2 did not fail.
        appeared (`datetime`, *optional*):
            Earliest appearance of the model that the judge believes.
        what (`str`):
            The model, in words that take a genitive.
    """
    unknown = f"{what}'s date is unknown"
    dates, statement = report.dates, report.publication.statement
    missing = [] if dates.beacon is not None else ["no beacon was established"]
    if dates.authorities < AUTHORITIES:
        missing.append(
            f"{dates.authorities} independent authorities dated precommit and statement, {AUTHORITIES} are asked for"
        )
    undated = []
    if dates.statement is None:
        undated.append("no trusted authority dated the claimant's statement")
    if appeared is None:
        missing.append(unknown)
        undated.append(unknown)
    elif dates.statement is not None and dates.statement > appeared - CLOCKS:
        undated.append(
            f"the claimant's statement is from {iso(dates.statement)}, {what} from {iso(appeared)}: not safely earlier"
        )
    bars = [*_older(statement, dates, appeared, what)]
    for revocation in report.revocations:
        bars += _revoked(revocation, statement, dates, appeared, what)
    # What no further date could lift comes first.
    bars.sort(key=lambda bar: bar.verdict is not Verdict.INVALID)
    return Order(bars[0] if bars else None, tuple(missing), tuple(undated))


def _older(statement: Statement, dates: Dates, appeared: datetime | None, what: str) -> Iterator[Bar]:
    """The claimant's own date binds him as much as those of authorities do."""
    created = parse_date(statement.created)
    times = [time for time in (created, dates.precommit, dates.statement) if time is not None]
    if appeared is None or not times or appeared >= max(times) - CLOCKS:
        return
    reason = f"{what} is from {iso(appeared)}, the mark from {iso(max(times))}: it cannot descend from it"
    if statement.supersedes is not None:
        reason += ". This statement replaces an earlier one; judge by that (OWNER/NAME@REVISION) if it is old enough"
    yield Bar(reason, Verdict.INVALID)


def _revoked(
    revocation: Revocation, statement: Statement, dates: Dates, appeared: datetime | None, what: str
) -> Iterator[Bar]:
    """The statement must be older than the revocation. Of a key that leaked, so must the model: later on, anybody could have marked it."""
    since = revocation.moment - CLOCKS
    created = parse_date(statement.created)
    stated = [time for time in (created, dates.statement) if time is not None]
    if max(stated) >= since:
        yield Bar(f"{revocation}, and the statement is from {iso(max(stated))}: it does not count", Verdict.INVALID)
    elif dates.statement is None:
        reason = f"{revocation}, and no trusted authority dated the statement before (--trust FILE)"
        yield Bar(reason, Verdict.INCONCLUSIVE)
    if revocation.reason != "leaked":
        return
    if appeared is None:
        reason = f"{revocation}, and {what}'s date is unknown: whoever had the key may have marked it since (--suspect-date)"
        yield Bar(reason, Verdict.INCONCLUSIVE)
    elif appeared >= since:
        reason = f"{revocation}, and {what} is from {iso(appeared)}: whoever had the key may have marked it"
        yield Bar(reason, Verdict.INVALID)


__all__ = ["AUTHORITIES", "Bar", "Order", "order_of"]
