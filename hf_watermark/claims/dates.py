"""Level V2: precommit before beacon before statement, by the word of authorities that the reader trusts (PROTOCOL.md §2.6)."""

import hashlib
from collections.abc import Sequence
from datetime import datetime

from cryptography import x509

from ..evidence import Strength
from ..keys import NO_BEACON, CommitmentProblem, ProblemKind, in_words
from ..publishing.beacon import beacon_time
from ..publishing.parts import Stamp
from ..publishing.precommit import PRECOMMIT, Precommit
from ..publishing.statement import SignedStatement, Statement, parse_date
from ..publishing.timestamp import TOKEN_BYTES, TokenTime, read_token, token_beacon
from ..serialization import InvalidInput
from ..suspects.source import Source
from .report import CLOCKS, Level, LevelReport, Outcome, iso


def check_dates(
    source: Source,
    signed: SignedStatement,
    level: Level,
    report: LevelReport,
    roots: Sequence[x509.Certificate],
    beacon: bytes | None,
    now: datetime,
) -> None:
    """V2: precommit before beacon before statement, by the word of trusted authorities."""
    statement = signed.statement
    raw = source.read(PRECOMMIT)
    if raw is None:
        raise InvalidInput(f"{PRECOMMIT} is missing: it was stripped, or never published")
    precommit = Precommit.parse(raw)
    problems = precommit.problems()
    if (precommit.precommit, precommit.public_key) != (statement.precommit, statement.public_key):
        problems.append(CommitmentProblem(ProblemKind.OWNER, "the precommit is not the one of the statement"))
    if problems:
        raise InvalidInput(in_words(problems))
    first, tokens = _times(source, statement.precommit_timestamps, precommit.stamped, roots, now)
    last, _ = _times(source, signed.timestamps, statement.to_sign, roots, now)
    report.precommit_time, report.statement_time = (
        max((time.moment for time in times), default=None) for times in (first, last)
    )
    report.authorities = min(len({time.authority for time in times}) for times in (first, last))
    claimed = parse_date(statement.created)
    assert claimed is not None  # V0 passed
    if report.precommit_time and claimed < report.precommit_time - CLOCKS:
        raise InvalidInput(
            f"the statement says {statement.created}, but its precommit was made at {iso(report.precommit_time)}: back-dated"
        )
    earliest = report.first_statement_time = min((time.moment for time in last), default=None)
    if earliest and claimed > earliest + CLOCKS:
        raise InvalidInput(
            f"the statement says {statement.created}, but a timestamp is from {iso(earliest)}: post-dated"
        )
    moment = _beacon(statement, report, tokens, beacon, roots)
    if moment and report.precommit_time and moment < report.precommit_time - CLOCKS:
        raise InvalidInput(
            f"the beacon is from {iso(moment)}, before the precommit ({iso(report.precommit_time)}): the key could have been searched"
        )
    if moment and (report.statement_time or claimed) < moment - CLOCKS:
        raise InvalidInput(f"the beacon is from {iso(moment)}, after the statement: no mark could be made from it")
    level.facts |= {
        "precommit": iso(report.precommit_time),
        "beacon": iso(moment),
        "statement": iso(report.statement_time),
    }
    missing = []
    stamped = bool(statement.precommit_timestamps and signed.timestamps)
    if not stamped:
        missing.append("precommit and statement are not both timestamped, so no date is proven")
    elif not roots:
        missing.append("no authority is trusted (--trust FILE), so no date is proven")
    if statement.level == Strength.B and report.beacon is None:
        missing.append("the beacon was not looked up (--beacon HEX), so level N applies")
    if missing:
        level.outcome, level.reasons = Outcome.OPEN, missing


def _times(
    source: Source, stamps: Sequence[Stamp], message: bytes, roots: Sequence[x509.Certificate], now: datetime
) -> tuple[list[TokenTime], list[bytes]]:
    """Trusted times of all tokens that are listed, and the tokens. A listed token that does not hold is a failure, not an absence."""
    times, tokens = [], []
    for stamp in stamps:
        raw = source.read(stamp.path, TOKEN_BYTES)
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


def _beacon(
    statement: Statement,
    report: LevelReport,
    tokens: Sequence[bytes],
    looked_up: bytes | None,
    roots: Sequence[x509.Certificate],
) -> datetime | None:
    """Establishes the beacon, if the reader can, and says when it came into the world."""
    value = bytes.fromhex(statement.beacon)
    if value == NO_BEACON:
        return None
    if looked_up is not None:
        if looked_up != value:
            raise InvalidInput(
                f"the beacon that was looked up is {looked_up.hex()[:16]}..., the key is bound to another value"
            )
        report.beacon = value
        return beacon_time(statement.beacon_source)
    if statement.beacon_source == "rfc3161":
        if value not in [token_beacon(raw) for raw in tokens]:
            raise InvalidInput("the beacon is not the signature of a timestamp over the precommit")
        if roots:
            report.beacon = value
            return report.precommit_time
    return beacon_time(statement.beacon_source)
