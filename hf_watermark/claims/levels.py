"""What anybody can check about a published model without its owner: levels V0 to V3 (PROTOCOL.md §2.7)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from ..publishing.publish import SIGNATURE
from ..publishing.statement import STATEMENT, SignedStatement, Statement, parse_date
from ..serialization import InvalidInput, SafetensorsFolder, named_tensors_digest, tensor_set_digest
from ..suspects.source import WEIGHT_FILE, Source
from .dates import check_dates
from .report import CLOCKS, Level, LevelReport, Outcome
from .subkeys import check_subkey0


SIGNATURE_BYTES = 2**20


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
        [`~publishing.HubError`]: when the repository cannot be read at all; that says nothing about a mark.
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
    level.reasons += map(str, statement.problems())
    if public_key is not None and public_key not in (statement.public_key, statement.fingerprint):
        level.reasons.append(f"signed by {statement.fingerprint}, not by the expected owner {public_key[:16]}")
    if repo_id is not None and repo_id != statement.model_id:
        level.reasons.append(f"written for {statement.model_id}, found in {repo_id}: this is a copy")
    claimed = parse_date(statement.created)
    if claimed is not None and claimed > now + CLOCKS:
        level.reasons.append(f"its date {statement.created} lies in the future")
    level.outcome = Outcome.FAILED if level.reasons else Outcome.PASSED
    level.facts = {"owner": statement.fingerprint, "created (claimed)": statement.created, "level": statement.level}
    if statement.certificates:
        radii = ", ".join(f"{certificate.radius} sigma" for certificate in statement.certificates)
        level.facts["certified radius (claimed)"] = radii
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
    from ..publishing.signing import check_signature

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
