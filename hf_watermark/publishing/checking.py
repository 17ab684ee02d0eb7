"""Levels V0 to V2: what anybody can check about a published model by its files alone (PROTOCOL.md §2.7)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from ..serialization import InvalidInput
from ..suspects.source import WEIGHT_FILE, Source
from .dates import check_dates
from .findings import CLOCKS, Level, LevelReport, Outcome
from .publication import Publication
from .publish import SIGNATURE
from .revocation import Revocation, SignedRevocation, concerning
from .statement import STATEMENT, Statement, parse_date


Progress = Callable[[str], None]


def check_files(
    place: Publication | Source | str | Path,
    roots: Sequence[x509.Certificate] = (),
    public_key: str | None = None,
    repo_id: str | None = None,
    beacon: bytes | None = None,
    token: str | bool | None = None,
    now: datetime | None = None,
    progress: Progress = lambda level: None,
    revocations: Sequence[SignedRevocation] = (),
) -> LevelReport:
    """
    Reads a publication and checks V0 to V2; see [`~claims.check`].

    Returns:
        [`LevelReport`]: Nothing in an unsigned or broken statement is worth checking further: then V1 and V2 are open.
    """
    publication, now = Publication.read(place, token), now or datetime.now(UTC)
    progress("V0")
    first = check_statement(publication, public_key, repo_id or publication.source.model_id, now)
    signed = publication.papers.signed
    revoked: Sequence[Revocation] = ()
    if signed is not None and first.outcome is Outcome.PASSED:
        try:
            revoked, foreign = concerning(signed.statement, (*publication.revocations, *revocations))
        except InvalidInput as error:
            first = Level.failed("V0", error)
        else:
            said = "; ".join(f"from {item.since} on ({item.reason})" for item in revoked) or None
            facts = {"revoked": said, "ignored revocations, not signed by the owner": foreign or None}
            first = replace(first, facts={**first.facts, **facts})
    if signed is None or first.outcome is not Outcome.PASSED:
        rest = (Level(name, Outcome.OPEN, ("V0 did not pass",)) for name in ("V1", "V2"))
        return LevelReport(publication, (first, *rest))
    progress("V1")
    second = check_weights(publication, signed.statement)
    progress("V2")
    third, dates = check_dates(publication.papers, signed, roots, beacon, now)
    return LevelReport(publication, (first, second, third), dates, revocations=tuple(revoked))


def check_statement(publication: Publication, public_key: str | None, repo_id: str | None, now: datetime) -> Level:
    """V0: the statement is signed by its owner and means what it says."""
    try:
        raw, signed = publication.papers.get(STATEMENT), publication.papers.signed
    except InvalidInput as error:
        return Level.failed("V0", error)
    if raw is None or signed is None:
        return Level("V0", Outcome.OPEN, (f"{STATEMENT} is missing: this model makes no claim",))
    statement, found = signed.statement, []
    if not signed.is_signed:
        found.append("the signature does not fit: the statement was edited after it was signed, or never was")
    found += map(str, statement.problems())
    if public_key is not None and public_key not in (statement.public_key, statement.fingerprint):
        found.append(f"signed by {statement.fingerprint}, not by the expected owner {public_key[:16]}")
    if repo_id is not None and repo_id != statement.model_id:
        found.append(f"written for {statement.model_id}, found in {repo_id}: this is a copy")
    claimed = parse_date(statement.created)
    if claimed is not None and claimed > now + CLOCKS:
        found.append(f"its date {statement.created} lies in the future")
    facts = {"owner": statement.fingerprint, "created (claimed)": statement.created, "level": statement.level}
    if statement.derived_from:
        facts["made from (claimed)"] = ", ".join(f"{o.precommit[:16]} of {o.owner}" for o in statement.derived_from)
    if statement.certificates:
        radii = ", ".join(f"{certificate.radius} sigma" for certificate in statement.certificates)
        facts["certified radius (claimed)"] = radii
    return Level("V0", Outcome.FAILED if found else Outcome.PASSED, tuple(found), facts)


def check_weights(publication: Publication, statement: Statement) -> Level:
    """V1: the same files; or other files with the same named tensors, as after re-sharding."""
    facts: dict[str, Any] = {}
    try:
        facts["checked"] = _same_weights(publication, statement)
        if statement.oms_public_key is None:
            return Level("V1", Outcome.PASSED, (), facts)
        return _check_oms(publication, statement.oms_public_key, facts)
    except InvalidInput as error:
        return Level("V1", Outcome.FAILED, (str(error),), facts)


def _same_weights(publication: Publication, statement: Statement) -> str:
    """
    How the weights were found to be those of the statement.

    Raises:
        [`~serialization.InvalidInput`]: when they are not.
    """
    listed = {file.path: file.sha256 for file in statement.weights.files}
    missing = sorted(set(listed) - set(publication.files))
    other = [path for path in listed if path not in missing and publication.sha256(path) != listed[path]]
    added = sorted(path for path in publication.files if WEIGHT_FILE.fullmatch(path) and path not in listed)
    if not missing and not other and not added:
        return f"SHA-256 of {len(listed)} files"
    changed = [path for path in (*missing, *other) if not WEIGHT_FILE.fullmatch(path)]
    if changed:
        raise InvalidInput(f"{changed[0]} is not the file of the statement: it was changed or removed after signing")
    publication.refuse_other_tensors(statement)
    return "names and values of all tensors (the files are packed differently)"


def _check_oms(publication: Publication, point: str, facts: dict[str, Any]) -> Level:
    """V1 where the statement names a key that signed the files (OpenSSF Model Signing)."""
    from .signing import check_signature

    raw = publication.papers.get(SIGNATURE)
    if raw is None:
        raise InvalidInput(f"the statement names a signature of the files, {SIGNATURE} is missing: it was stripped")
    try:
        check_signature({path: publication.source.path(path) for path in publication.files}, raw, point)
    except ImportError as error:
        return Level("V1", Outcome.OPEN, (f"{SIGNATURE} was not checked: {error}",), facts)
    return Level("V1", Outcome.PASSED, (), facts | {"model signature": "fits"})
