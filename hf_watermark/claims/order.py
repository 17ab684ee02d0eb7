"""What the dates of a statement allow to say about a model that appeared at some moment (PROTOCOL.md §2.6, §2.8)."""

from dataclasses import dataclass
from datetime import datetime

from ..evidence import Strength
from ..publishing.statement import parse_date
from .report import CLOCKS, LevelReport, iso


AUTHORITIES = 2


@dataclass(frozen=True)
class Order:
    """
    Args:
        older (`str`, *optional*):
            Why the model cannot carry this mark: it was there before.
        missing (`list[str]`):
            What keeps the claim from level B.
        undated (`list[str]`):
            Why the claimant's published model cannot be shown to be older than the model, so that it is no reference for it.
    """

    older: str | None
    missing: list[str]
    undated: list[str]

    @property
    def bound(self) -> bool:
        """Whether level B is enough."""
        return not self.missing

    @property
    def level(self) -> Strength:
        return Strength.asked(self.bound)


def order_of(report: LevelReport, appeared: datetime | None, what: str = "the suspect") -> Order:
    """
    The same rules for all who judge: [`judge`], [`dispute`], [`verify_claim`].

    Args:
        report ([`LevelReport`]):
            Of a statement whose V0 passed and whose V2 did not fail.
        appeared (`datetime`, *optional*):
            Earliest appearance of the model that the judge believes.
        what (`str`):
            The model, in words that take a genitive.
    """
    unknown = f"{what}'s date is unknown"
    missing = [] if report.beacon is not None else ["no beacon was established"]
    if report.authorities < AUTHORITIES:
        missing.append(
            f"{report.authorities} independent authorities dated precommit and statement, {AUTHORITIES} are asked for"
        )
    undated = []
    if report.statement_time is None:
        undated.append("no trusted authority dated the claimant's statement")
    if appeared is None:
        missing.append(unknown)
        undated.append(unknown)
    elif report.statement_time is not None and report.statement_time > appeared - CLOCKS:
        undated.append(
            f"the claimant's statement is from {iso(report.statement_time)}, {what} from {iso(appeared)}: not safely earlier"
        )
    return Order(_older(report, appeared, what), missing, undated)


def _older(report: LevelReport, appeared: datetime | None, what: str) -> str | None:
    """The claimant's own date binds him as much as those of authorities do."""
    assert report.signed is not None  # V0 passed
    statement = report.signed.statement
    created = parse_date(statement.created)
    times = [time for time in (created, report.precommit_time, report.statement_time) if time is not None]
    if appeared is None or not times or appeared >= max(times) - CLOCKS:
        return None
    reason = f"{what} is from {iso(appeared)}, the mark from {iso(max(times))}: it cannot descend from it"
    if statement.supersedes is None:
        return reason
    return f"{reason}. This statement replaces an earlier one; judge by that (OWNER/NAME@REVISION) if it is old enough"
