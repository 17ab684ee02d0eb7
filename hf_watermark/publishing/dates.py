"""Level V2: precommit before beacon before statement, by the word of authorities that the reader trusts (PROTOCOL.md §2.6)."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from cryptography import x509

from ..evidence import Strength
from ..keys import NO_BEACON, CommitmentProblem, ProblemKind, in_words
from ..serialization import InvalidInput
from .beacon import beacon_time
from .findings import CLOCKS, Dates, Level, iso
from .parts import Stamp
from .precommit import PRECOMMIT, Precommit
from .publication import Papers
from .statement import SignedStatement, Statement, parse_date
from .timestamp import TokenTime, read_token, token_beacon


def check_dates(
    papers: Papers,
    signed: SignedStatement,
    roots: Sequence[x509.Certificate],
    looked_up: bytes | None,
    now: datetime,
) -> tuple[Level, Dates]:
    """
    V2, and the dates that were established until something spoke against them.

    Args:
        roots (`Sequence`): Certificates of the authorities that the reader trusts.
        looked_up (`bytes`, *optional*): The beacon as the reader looked it up himself.
    """
    statement, dates = signed.statement, Dates()
    try:
        first, tokens = _times(
            papers, statement.precommit_timestamps, _precommit(papers, statement).stamped, roots, now
        )
        last, _ = _times(papers, signed.timestamps, statement.to_sign, roots, now)
        dates = _agreed(first, last)
        _refuse_misdated(statement, dates)
        dates, moment = _with_beacon(dates, statement, tokens, looked_up, roots)
        _refuse_misplaced(moment, statement, dates)
    except InvalidInput as error:
        return Level.failed("V2", error), dates
    facts = {"precommit": iso(dates.precommit), "beacon": iso(moment), "statement": iso(dates.statement)}
    missing = []
    if not (statement.precommit_timestamps and signed.timestamps):
        missing.append("precommit and statement are not both timestamped, so no date is proven")
    elif not roots:
        missing.append("no authority is trusted (--trust FILE), so no date is proven")
    if statement.level == Strength.B and dates.beacon is None:
        missing.append("the beacon was not looked up (--beacon HEX), so level N applies")
    return Level.open_if("V2", missing, facts), dates


def _precommit(papers: Papers, statement: Statement) -> Precommit:
    raw = papers.get(PRECOMMIT)
    if raw is None:
        raise InvalidInput(f"{PRECOMMIT} is missing: it was stripped, or never published")
    precommit = Precommit.parse(raw)
    problems = precommit.problems()
    if (precommit.precommit, precommit.public_key) != (statement.precommit, statement.public_key):
        problems.append(CommitmentProblem(ProblemKind.OWNER, "the precommit is not the one of the statement"))
    if problems:
        raise InvalidInput(in_words(problems))
    return precommit


def _times(
    papers: Papers, stamps: Sequence[Stamp], message: bytes, roots: Sequence[x509.Certificate], now: datetime
) -> tuple[list[TokenTime], list[bytes]]:
    """Trusted times of all tokens that are listed, and the tokens. A listed token that does not hold is a failure, not an absence."""
    times, tokens = [], []
    for stamp in stamps:
        raw = papers.get(stamp.path)
        if raw is None:
            raise InvalidInput(f"{stamp.path} is missing: a timestamp was stripped")
        if hashlib.sha256(raw).hexdigest() != stamp.sha256:
            raise InvalidInput(f"{stamp.path} is not the timestamp that is listed: it was exchanged")
        tokens.append(raw)
        if roots:
            times.append(read_token(raw, message, roots, stamp.path))
            if times[-1].moment > now + CLOCKS:
                raise InvalidInput(f"{stamp.path} is from the future ({iso(times[-1].moment)})")
    return times, tokens


def _agreed(first: Sequence[TokenTime], last: Sequence[TokenTime]) -> Dates:
    """Dates by all trusted times of the precommit and of the statement."""
    return Dates(
        precommit=max((time.moment for time in first), default=None),
        statement=max((time.moment for time in last), default=None),
        first_statement=min((time.moment for time in last), default=None),
        authorities=min(len({time.authority for time in times}) for times in (first, last)),
    )


def _refuse_misdated(statement: Statement, dates: Dates) -> None:
    claimed = parse_date(statement.created)
    assert claimed is not None  # V0 passed
    if dates.precommit and claimed < dates.precommit - CLOCKS:
        raise InvalidInput(
            f"the statement says {statement.created}, but its precommit was made at {iso(dates.precommit)}: back-dated"
        )
    earliest = dates.first_statement
    if earliest and claimed > earliest + CLOCKS:
        raise InvalidInput(
            f"the statement says {statement.created}, but a timestamp is from {iso(earliest)}: post-dated"
        )


def _with_beacon(
    dates: Dates,
    statement: Statement,
    tokens: Sequence[bytes],
    looked_up: bytes | None,
    roots: Sequence[x509.Certificate],
) -> tuple[Dates, datetime | None]:
    """The dates with the beacon, if the reader can establish it, and when it came into the world."""
    value = bytes.fromhex(statement.beacon)
    if value == NO_BEACON:
        return dates, None
    if looked_up is not None:
        if looked_up != value:
            raise InvalidInput(
                f"the beacon that was looked up is {looked_up.hex()[:16]}..., the key is bound to another value"
            )
        return replace(dates, beacon=value), beacon_time(statement.beacon_source)
    if statement.beacon_source == "rfc3161":
        if value not in [token_beacon(raw) for raw in tokens]:
            raise InvalidInput("the beacon is not the signature of a timestamp over the precommit")
        if roots:
            return replace(dates, beacon=value), dates.precommit
    return dates, beacon_time(statement.beacon_source)


def _refuse_misplaced(moment: datetime | None, statement: Statement, dates: Dates) -> None:
    """The beacon comes after the precommit, and before the statement."""
    if moment is None:
        return
    if dates.precommit and moment < dates.precommit - CLOCKS:
        raise InvalidInput(
            f"the beacon is from {iso(moment)}, before the precommit ({iso(dates.precommit)}): the key could have been searched"
        )
    until = dates.statement or parse_date(statement.created)
    if until is not None and until < moment - CLOCKS:
        raise InvalidInput(f"the beacon is from {iso(moment)}, after the statement: no mark could be made from it")
