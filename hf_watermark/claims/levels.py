"""What anybody can check about a published model without its owner: levels V0 to V3 (protocol.md §2.7)."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from cryptography import x509

from ..evidence import Evidence, Verdict
from ..hub.beacon import beacon_time
from ..hub.precommit import PRECOMMIT, Precommit
from ..hub.publish import POOL, SIGNATURE, SUBKEY0
from ..hub.source import WEIGHT_FILE, RepoSource, Source
from ..hub.statement import STATEMENT, SignedStatement, Stamp, Statement, parse_date
from ..hub.timestamp import TOKEN_BYTES, TokenTime, read_token, token_beacon
from ..keys import NO_BEACON, Opening
from ..mapping import method_entry, verify
from ..serialization import InvalidInput, SafetensorsFolder, named_tensors_digest, parse_json, tensor_set_digest
from ..suspects import Suspect


# Clocks of authorities and of the reader may differ by as much.
CLOCKS = timedelta(minutes=5)
SIGNATURE_BYTES = 2**20
TITLES = {
    "V0": "the statement is signed by its owner and means what it says",
    "V1": "the files are those of the statement",
    "V2": "the key was committed, and the dates are in order",
    "V3": "sub-key 0, opened on purpose, is in the published model",
}


class Outcome(StrEnum):
    """`open` is neither: something that a reader would need is not there, or was not trusted."""

    PASSED = "passed"
    FAILED = "failed"
    OPEN = "open"


@dataclass
class Level:
    """One line of the report, with what speaks against it or is missing, and what was seen."""

    name: str
    outcome: Outcome
    reasons: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "level": self.name,
            "title": TITLES[self.name],
            "outcome": str(self.outcome),
            "reasons": self.reasons,
            "facts": self.facts,
        }


@dataclass
class LevelReport:
    """
    Args:
        beacon (`bytes`, *optional*):
            The beacon, when the reader has established it himself; only then is level B enough.
        precommit_time, statement_time (`datetime`, *optional*):
            The latest of the trusted times of each.
        authorities (`int`):
            How many independent authorities dated both.
    """

    source: str
    commit: str | None
    levels: list[Level]
    signed: SignedStatement | None = None
    beacon: bytes | None = None
    precommit_time: datetime | None = None
    statement_time: datetime | None = None
    authorities: int = 0
    evidence: Evidence | None = None

    def __getitem__(self, name: str) -> Level:
        return next(level for level in self.levels if level.name == name)

    @property
    def reached(self) -> str | None:
        """The highest level up to which all passed; `None` when V0 did not."""
        reached = None
        for level in self.levels:
            if level.outcome is not Outcome.PASSED:
                break
            reached = level.name
        return reached

    @property
    def failed(self) -> bool:
        """Whether anything speaks against the statement, beyond what is merely missing."""
        return any(level.outcome is Outcome.FAILED for level in self.levels)

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "commit": self.commit,
            "reached": self.reached,
            "failed": self.failed,
            "levels": [level.to_dict() for level in self.levels],
            "statement": self.signed.plain() if self.signed else None,
            "precommit_time": iso(self.precommit_time),
            "statement_time": iso(self.statement_time),
            "authorities": self.authorities,
            "evidence": self.evidence.to_dict() if self.evidence else None,
        }


def check(
    source: Source | str | Path,
    roots: Sequence[x509.Certificate] = (),
    public_key: str | None = None,
    repo_id: str | None = None,
    beacon: bytes | None = None,
    token: str | bool | None = None,
    now: datetime | None = None,
    progress: Callable[[str], None] = lambda level: None,
) -> LevelReport:
    """
    Checks the public files of a model.

    Args:
        source (`str` or `Path`):
            A folder, or `owner/name[@revision]`.
        roots (`Sequence`):
            Certificates of the timestamp authorities that the reader trusts; without them dates are claims.
        public_key (`str`, *optional*):
            Hexadecimal key (or its fingerprint) that the reader expects; without it any signer will do.
        repo_id (`str`, *optional*):
            Where a folder was downloaded from, so that a copied statement is noticed.
        beacon (`bytes`, *optional*):
            The public random value, as the reader looked it up himself.
        token (`str` or `bool`, *optional*):
            Access token for a repository; `False` sends none.
        progress (`Callable`, *optional*):
            Called with `"V0"`, `"V1"` ... before each is checked.

    Returns:
        [`LevelReport`]: V0 to V3, each `passed`, `failed` or `open`, with reasons.

    Raises:
        [`~hub.HubError`]: when the repository cannot be read at all; that says nothing about a mark.
    """
    source, now = Source.open(source, token), now or datetime.now(UTC)
    report = LevelReport(source.name, source.commit, [])
    progress("V0")
    report.levels.append(check_statement(source, report, public_key, repo_id or source.model_id, now))
    signed = report.signed
    if signed is None or report["V0"].outcome is not Outcome.PASSED:
        # Nothing in an unsigned or broken statement is worth checking further.
        report.levels += [Level(name, Outcome.OPEN, ["V0 did not pass"]) for name in ("V1", "V2", "V3")]
        return report
    progress("V1")
    report.levels.append(_level("V1", lambda level: check_weights(source, signed.statement, level)))
    progress("V2")
    report.levels.append(_level("V2", lambda level: check_dates(source, signed, level, report, roots, beacon, now)))
    progress("V3")
    report.levels.append(_level("V3", lambda level: check_subkey0(source, signed.statement, level, report)))
    return report


def _level(name: str, run: Any) -> Level:
    level = Level(name, Outcome.PASSED)
    try:
        run(level)
    except InvalidInput as error:
        level.reasons.append(str(error))
        level.outcome = Outcome.FAILED
    return level


def check_statement(
    source: Source, report: LevelReport, public_key: str | None, repo_id: str | None, now: datetime
) -> Level:
    """V0. Sets `report.signed` when there is a readable statement."""
    level = Level("V0", Outcome.PASSED)
    try:
        raw = source.read(STATEMENT)
        if raw is None:
            return replace(level, outcome=Outcome.OPEN, reasons=[f"{STATEMENT} is missing: this model makes no claim"])
        signed = SignedStatement.parse(raw)
    except InvalidInput as error:
        return replace(level, outcome=Outcome.FAILED, reasons=[str(error)])
    report.signed, statement = signed, signed.statement
    if not signed.is_signed:
        level.reasons.append("the signature does not fit: the statement was edited after it was signed, or never was")
    level.reasons += statement.problems()
    if public_key is not None and public_key not in (statement.public_key, statement.fingerprint):
        level.reasons.append(f"signed by {statement.fingerprint}, not by the expected owner {public_key[:16]}")
    if repo_id is not None and repo_id != statement.model_id:
        level.reasons.append(f"written for {statement.model_id}, found in {repo_id}: this is a copy")
    claimed = parse_date(statement.created)
    if claimed is not None and claimed > now + CLOCKS:
        level.reasons.append(f"its date {statement.created} lies in the future")
    level.outcome = Outcome.FAILED if level.reasons else Outcome.PASSED
    level.facts = {"owner": statement.fingerprint, "created (claimed)": statement.created, "level": statement.level}
    return level


def check_weights(source: Source, statement: Statement, level: Level) -> None:
    """V1: the same files; or other files with the same named tensors, as after re-sharding."""
    listed = {file.path: file.sha256 for file in statement.weights.files}
    missing = sorted(set(listed) - set(source.sizes))
    other = [path for path in listed if path not in missing and source.sha256(path) != listed[path]]
    added = sorted(path for path in source.sizes if WEIGHT_FILE.fullmatch(path) and path not in listed)
    if not missing and not other and not added:
        level.facts["checked"] = f"SHA-256 of {len(listed)} files"
    else:
        changed = [path for path in (*missing, *other) if not WEIGHT_FILE.fullmatch(path)]
        if changed:
            raise InvalidInput(
                f"{changed[0]} is not the file of the statement: it was changed or removed after signing"
            )
        refuse_other_tensors(source.weights(), statement)
        level.facts["checked"] = "names and values of all tensors (the files are packed differently)"
    if statement.oms_public_key is not None:
        check_oms(source, statement.oms_public_key, level)


def refuse_other_tensors(tensors: SafetensorsFolder, statement: Statement) -> None:
    """
    Raises:
        [`~serialization.InvalidInput`]: when the tensors are not those of the statement; says in what way.
    """
    if named_tensors_digest(tensors) == statement.weights.named_tensors_sha256:
        return
    if tensor_set_digest(tensors) == statement.weights.tensor_set_sha256:
        raise InvalidInput(
            "the tensors of the statement are there, but under other names: they were swapped or renamed"
        )
    raise InvalidInput("the weights are not those of the statement: another model, or changed after signing")


def check_oms(source: Source, point: str, level: Level) -> None:
    from ..hub.signing import check_signature

    raw = source.read(SIGNATURE, SIGNATURE_BYTES)
    if raw is None:
        raise InvalidInput(f"the statement names a signature of the files, {SIGNATURE} is missing: it was stripped")
    try:
        check_signature({path: source.path(path) for path in source.sizes}, raw, point)
    except ImportError as error:
        level.outcome = Outcome.OPEN
        level.reasons.append(f"{SIGNATURE} was not checked: {error}")
    else:
        level.facts["model signature"] = "fits"


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
        problems.append("the precommit is not the one of the statement")
    if problems:
        raise InvalidInput("; ".join(problems))
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
    earliest = min((time.moment for time in last), default=None)
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
    if statement.level == "B" and report.beacon is None:
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


def check_subkey0(source: Source, statement: Statement, level: Level, report: LevelReport) -> None:
    """V3: the opened sub-key is in the committed tree, and its mark in the published weights."""
    if 0 not in statement.opened_subkeys:
        level.outcome, level.reasons = Outcome.OPEN, ["no sub-key was opened in public: this key has too few"]
        return
    raw = source.read(SUBKEY0)
    if raw is None:
        raise InvalidInput(f"{SUBKEY0} is missing: it was stripped")
    opening = Opening.from_dict(parse_json(raw, allow_floats=True))
    problems = opening_problems(opening, statement)
    if opening.index != 0:
        problems.append(f"{SUBKEY0} opens sub-key {opening.index}")
    if problems:
        raise InvalidInput("; ".join(problems))
    opening = replace(opening, pool=_pool(source, opening))
    if opening.assignment.layout.get("pool_sha256") is not None and not opening.pool:
        level.outcome = Outcome.OPEN
        level.reasons = [f"`{opening.assignment.method}` needs the owner's source images, which are not published"]
        return
    evidence = verify(suspect_of(source, opening), opening, beacon=report.beacon)
    report.evidence = evidence
    level.facts = {"log2 p": round(evidence.log2_p, 1), "matches": f"{evidence.matches}/{evidence.trials}"}
    if evidence.verdict is Verdict.FOUND:
        return
    level.outcome = Outcome.OPEN if evidence.verdict is Verdict.INCONCLUSIVE else Outcome.FAILED
    level.reasons.append(f"sub-key 0 on the published model: {evidence.verdict} ({evidence.reason})")


def opening_problems(opening: Opening, statement: Statement) -> list[str]:
    """Why an opening does not belong to a statement; empty when it does. The pool is checked elsewhere."""
    found = [text for text in replace(opening, pool={}).problems() if "the triggers of" not in text]
    if opening.public_key.hex() != statement.public_key:
        found.append("the opening belongs to another owner")
    elif opening.precommit.hex() != statement.precommit:
        found.append("the opening belongs to another key of this owner")
    if (opening.beacon.hex(), opening.beacon_source) != (statement.beacon, statement.beacon_source):
        found.append("the opening is bound to another beacon than the statement")
    claims = [method for method in statement.methods if method.spec_sha256 == opening.assignment.spec.hex()]
    if not claims:
        found.append("the statement names no such method")
    elif opening.index not in claims[0].subkeys or claims[0].name != opening.assignment.method:
        found.append(f"sub-key {opening.index} is not one of `{claims[0].name}` in the statement")
    return found


def suspect_of(source: Source, opening: Opening) -> Suspect:
    """The published model as a suspect; black-box methods need it to run on the architecture that its statement binds."""
    if method_entry(opening.assignment.method).access == "weights":
        return weights_of(source)
    raw = source.read("config.json", 2**20)
    if raw is None:
        raise InvalidInput("config.json is missing, so the model cannot be asked")
    # Parsed as data; nothing in it can load code (see `backbones.UNSAFE_FIELDS`).
    return Suspect.open(
        source.weights().path, parse_json(raw, max_bytes=2**20, max_brackets=100_000, allow_floats=True)
    )


def weights_of(source: Source) -> Suspect:
    """The weights alone, as a suspect. Of a repository only the ranges that a check needs are read."""
    if isinstance(source, RepoSource):
        return Suspect.open(f"{source.model_id}@{source.commit}", token=source.token)
    weights = source.weights()
    return Suspect(source.name, weights, weights.shapes)


def _pool(source: Source, opening: Opening) -> dict[str, Any]:
    if POOL not in source or opening.assignment.layout.get("pool_sha256") is None:
        return {}
    return dict(SafetensorsFolder(source.path(POOL)))


def iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
