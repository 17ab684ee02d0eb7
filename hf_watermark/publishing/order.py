"""What the dates of a statement allow to say about a model that appeared at some moment (PROTOCOL.md §2.6, §2.8)."""

from dataclasses import dataclass
from datetime import datetime

from ..evidence import Strength
from .findings import CLOCKS, Dates, LevelReport, iso
from .statement import Statement, parse_date


AUTHORITIES = 2


@dataclass(frozen=True)
class Order:
    """
    Args:
        older (`str`, *optional*):
            Why the model cannot carry this mark: it was there before.
        missing (`tuple[str, ...]`):
            What keeps the claim from level B.
        undated (`tuple[str, ...]`):
            Why the claimant's published model cannot be shown to be older than the model, so that it is no reference for it.
    """

    older: str | None
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
    dates = report.dates
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
    return Order(_older(report.publication.statement, dates, appeared, what), tuple(missing), tuple(undated))


def _older(statement: Statement, dates: Dates, appeared: datetime | None, what: str) -> str | None:
    """The claimant's own date binds him as much as those of authorities do."""
    created = parse_date(statement.created)
    times = [time for time in (created, dates.precommit, dates.statement) if time is not None]
    if appeared is None or not times or appeared >= max(times) - CLOCKS:
        return None
    reason = f"{what} is from {iso(appeared)}, the mark from {iso(max(times))}: it cannot descend from it"
    if statement.supersedes is None:
        return reason
    return f"{reason}. This statement replaces an earlier one; judge by that (OWNER/NAME@REVISION) if it is old enough"
