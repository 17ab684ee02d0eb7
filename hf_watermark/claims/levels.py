"""What anybody can check about a published model without its owner: levels V0 to V3 (PROTOCOL.md §2.7)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from cryptography import x509

from ..evidence import Basis, Check, Evidence, Verdict
from ..mapping import METHODS
from ..publishing.belonging import published_opening
from ..publishing.checking import check_files
from ..publishing.findings import Level, LevelReport, Outcome
from ..publishing.publication import Publication
from ..publishing.revocation import SignedRevocation
from ..serialization import InvalidInput
from ..suspects.source import Source
from ..verifying import run_check


def check(
    source: Publication | Source | str | Path,
    roots: Sequence[x509.Certificate] = (),
    public_key: str | None = None,
    repo_id: str | None = None,
    beacon: bytes | None = None,
    token: str | bool | None = None,
    now: datetime | None = None,
    progress: Callable[[str], None] = lambda level: None,
    revocations: Sequence[SignedRevocation] = (),
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
        revocations (`Sequence[SignedRevocation]`, *optional*):
            What somebody handed in, beside those that the owner published. What the owner of this key did not sign is ignored.

    Returns:
        [`LevelReport`]: V0 to V3, each `passed`, `failed` or `open`, with reasons.

    Raises:
        [`~publishing.HubError`]: when the repository cannot be read at all; that says nothing about a mark.
    """
    report = check_files(source, roots, public_key, repo_id, beacon, token, now, progress, revocations)
    if report["V0"].outcome is not Outcome.PASSED:
        last, evidence = Level("V3", Outcome.OPEN, ("V0 did not pass",)), None
    else:
        progress("V3")
        last, evidence = check_subkey0(report.publication, bound=report.dates.beacon is not None)
    return replace(report, levels=(*report.levels, last), evidence=evidence)


def check_subkey0(publication: Publication, bound: bool) -> tuple[Level, Evidence | None]:
    """V3: the opened sub-key is in the committed tree, and its mark in the published weights."""
    if 0 not in publication.statement.opened_subkeys:
        return Level("V3", Outcome.OPEN, ("no sub-key was opened in public: this key has too few",)), None
    try:
        opening = published_opening(publication.papers, publication.statement, METHODS)
        if opening.assignment.layout.get("pool_sha256") is not None:
            opening = replace(opening, pool=publication.pool())
            if not opening.pool:
                missing = f"`{opening.assignment.method}` needs the owner's source images, which are not published"
                return Level("V3", Outcome.OPEN, (missing,)), None
        # Read on purpose although it is public: V3 says that the model carries its owner's mark, and nothing about any other model.
        evidence = run_check(publication.suspect(opening.backbone), opening, Check(bound=bound, basis=Basis.CLAIM))
    except InvalidInput as error:
        return Level.failed("V3", error), None
    facts = {"log2 p": round(evidence.log2_p, 1), "matches": f"{evidence.matches}/{evidence.trials}"}
    if evidence.found:
        return Level("V3", Outcome.PASSED, (), facts), evidence
    outcome = Outcome.OPEN if evidence.verdict is Verdict.INCONCLUSIVE else Outcome.FAILED
    reason = f"sub-key 0 on the published model: {evidence.verdict} ({evidence.reason})"
    return Level("V3", outcome, (reason,), facts), evidence
