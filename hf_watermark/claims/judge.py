"""One claim before a judge who has the opening and nothing else: everything is derived again (PROTOCOL.md §2.8)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from ..evidence import CONTROL_LIMIT, Basis, Check, Verdict
from ..hub.source import Source
from ..hub.statement import Statement
from ..keys import Opening
from ..mapping import method_entry, run_check
from ..serialization import canonical_json
from ..suspects import Suspect
from .disclosure import Disclosure
from .judgement import Judgement, Step
from .levels import check
from .report import CLOCKS, LevelReport, Outcome, iso
from .subkeys import opening_problems, suspect_of, weights_of


AUTHORITIES = 2
LEARNED = "asked, not read: the suspect learned the marked behaviour; that it descends from the weights takes a white-box mark"


class Dismissed(Exception):
    """The claim is inadmissible; the suspect is not looked at."""


def judge(
    disclosure: Disclosure,
    suspect: Any,
    statement: Source | str | Path,
    nonce: str | None = None,
    roots: Sequence[x509.Certificate] = (),
    public_key: str | None = None,
    beacon: bytes | None = None,
    suspect_time: datetime | None = None,
    drawn: bool = False,
    looks: int = 1,
    unmarked: Mapping[str, Any] | None = None,
    token: str | bool | None = None,
    now: datetime | None = None,
) -> Judgement:
    """
    Judges the claim that `suspect` carries the mark of a statement.

    Args:
        disclosure ([`Disclosure`]):
            The opened sub-key.
        suspect:
            Folder, `owner/name[@revision]`, module, or a function from images to labels or probabilities.
        statement (`str` or `Path`):
            Folder or repository with the claimant's published model.
        nonce (`str`, *optional*):
            What the judge asked the claimant to sign.
        roots, public_key, beacon:
            What the judge trusts, expects and looked up; see [`check`].
        suspect_time (`datetime`, *optional*):
            Earliest appearance of the suspect that the judge believes. Unknown: level N is asked for.
        drawn (`bool`, *optional*, defaults to `False`):
            Whether the judge chose the sub-key. If not, every sub-key that the claimant could have picked is charged as a look.
        looks (`int`, *optional*, defaults to 1):
            Further variants that were tried: suspect snapshots, alignments, preprocessings.
        unmarked (`Mapping`, *optional*):
            Models by name that do not carry the mark (the owner's twin, the public base, null models): controls that must not pass.
    """
    source = Source.open(statement, token)
    report = check(source, roots, public_key, beacon=beacon, token=token, now=now)
    steps: list[Step] = []
    opening, looks = disclosure.opening, max(1, looks)
    inputs = _inputs(disclosure, source, suspect, nonce)
    inputs["statement"]["sha256"] = None if report.signed is None else report.signed.statement.digest
    result = Judgement(Verdict.INVALID, "", "N", looks, steps, None, {}, report, inputs)
    try:
        _admit(disclosure, source, report, nonce, steps)
        result.level = _level(report, suspect_time, steps)
        # What the commitment says, and not what the statement lists or what was opened since: the claimant has both in his hand.
        looks *= 1 if drawn else len(opening.used)
        detail = "drawn by the judge" if drawn else "chosen by the claimant: all committed sub-keys are charged"
        steps.append(Step("looks", Outcome.PASSED, f"sub-key {opening.index}, {detail} ({looks} looks)"))
        result.looks = looks
        plan = Check(bound=result.level == "B", looks=looks, basis=Basis.CLAIM, disclosed=opening.disclosed)
        result.controls = _controls(source, opening, plan, unmarked or {}, steps)
        result.inputs["suspect"], opened = open_suspect(suspect, source, opening, token)
        evidence = run_check(opened, opening, plan)
        result.evidence, result.verdict, result.reason = evidence, evidence.verdict, evidence.reason
        steps.append(Step("suspect", Outcome.PASSED, f"log2 p = {evidence.log2_p:.1f}"))
        if method_entry(opening.assignment.method).access != "weights":
            steps.append(Step("scope", Outcome.OPEN, LEARNED))
    except Dismissed as dismissed:
        result.reason = str(dismissed)
        return result
    failed = [step.detail for step in steps if step.name.startswith("control") and step.outcome is Outcome.FAILED]
    if failed:
        result.verdict, result.reason = Verdict.INCONCLUSIVE, f"a control failed: {failed[0]}"
    return result


def _admit(disclosure: Disclosure, source: Source, report: LevelReport, nonce: str | None, steps: list[Step]) -> None:
    """Statement, owner's consent, commitment, and whether the sub-key may still prove anything."""
    for name in ("V0", "V1", "V2"):
        level = report[name]
        steps.append(Step(f"statement {name}", level.outcome, "; ".join(level.reasons) or "holds"))
        if level.outcome is Outcome.FAILED or (name == "V0" and level.outcome is Outcome.OPEN):
            raise Dismissed(f"{name}: {'; '.join(level.reasons)}")
    assert report.signed is not None  # V0 passed
    _step("consent", disclosure.problems(nonce), steps)
    statement, opening = report.signed.statement, disclosure.opening
    _step("commitment", opening_problems(opening, statement), steps)
    # What is left can only be the source images, which the claimant sends along.
    _step("source images", opening.problems(), steps)
    _step("sub-key", _spent(disclosure, statement), steps)


def _step(name: str, problems: list[str], steps: list[Step]) -> None:
    steps.append(Step(name, Outcome.FAILED if problems else Outcome.PASSED, "; ".join(problems) or "holds"))
    if problems:
        raise Dismissed("; ".join(problems))


def _level(report: LevelReport, suspect_time: datetime | None, steps: list[Step]) -> str:
    """`B` only where beacon, two authorities and the suspect's date are there; a suspect older than the mark ends the claim."""
    times = [time for time in (report.precommit_time, report.statement_time) if time is not None]
    if suspect_time is not None and times and suspect_time < max(times) - CLOCKS:
        _step(
            "dates",
            [f"the suspect is from {iso(suspect_time)}, the mark from {iso(max(times))}: it cannot descend from it"],
            steps,
        )
    missing = []
    if report.beacon is None:
        missing.append("no beacon was established")
    if report.authorities < AUTHORITIES:
        missing.append(
            f"{report.authorities} independent authorities dated precommit and statement, {AUTHORITIES} are asked for"
        )
    if suspect_time is None:
        missing.append("the suspect's date is unknown")
    level = "N" if missing else "B"
    steps.append(
        Step(
            "dates",
            Outcome.OPEN if missing else Outcome.PASSED,
            f"level {level}" + (f": {'; '.join(missing)}" if missing else ""),
        )
    )
    return level


def _spent(disclosure: Disclosure, statement: Statement) -> list[str]:
    """Why the opened sub-key may not prove anything; an opening for this very dispute does not spoil itself."""
    index = disclosure.opening.index
    if index in statement.public:
        return [f"sub-key {index} is public: anybody could have planted it"]
    this = None if disclosure.consent is None else hashlib.sha256(disclosure.consent.nonce.encode()).hexdigest()
    if any(entry.subkey == index and entry.nonce_sha256 != this for entry in statement.disclosed):
        return [f"sub-key {index} was opened in an earlier dispute and proves nothing any more"]
    return []


def _controls(
    source: Source, opening: Opening, check: Check, unmarked: Mapping[str, Any], steps: list[Step]
) -> dict[str, Any]:
    """The claimant's own model must pass, unmarked ones must not; decoy keys are part of every verification."""
    own = run_check(suspect_of(source, opening), opening, replace(check, looks=1))
    outcome = Outcome.PASSED if own.verdict is Verdict.FOUND else Outcome.FAILED
    steps.append(
        Step(
            "control: published model",
            outcome,
            f"the sub-key on the claimant's own model: {own.verdict}, {own.reason}",
        )
    )
    results: dict[str, Any] = {"published model": own.to_dict()}
    for name, model in unmarked.items():
        _, suspect = open_suspect(model, source, opening, None)
        evidence = run_check(suspect, opening, replace(check, looks=1))
        clean = evidence.log2_p > CONTROL_LIMIT
        steps.append(
            Step(
                f"control: {name}",
                Outcome.PASSED if clean else Outcome.FAILED,
                f"{name} without the mark: log2 p = {evidence.log2_p:.1f}",
            )
        )
        results[name] = evidence.to_dict()
    return results


def open_suspect(
    suspect: Any, source: Source, opening: Opening, token: str | bool | None
) -> tuple[dict[str, Any], Any]:
    """The suspect at one moment, with the digests that fix it, on the architecture of the *claimant* where it must be asked."""
    if not isinstance(suspect, str | Path):
        return {"name": getattr(suspect, "__name__", type(suspect).__name__)}, suspect
    if Path(suspect).is_file():
        digest = hashlib.sha256(Path(suspect).read_bytes()).hexdigest()
        return {"name": str(suspect), "files": {Path(suspect).name: digest}}, Suspect.open(Path(suspect))
    frozen = Source.open(suspect, token)
    files = {path: frozen.sha256(path) for path in frozen.sizes if path.endswith(".safetensors")}
    fixed = {"name": frozen.name, "commit": frozen.commit, "files": files}
    if method_entry(opening.assignment.method).access == "weights":
        return fixed, weights_of(frozen)
    return fixed, Suspect.open(frozen.weights().path, opening.backbone)


def _inputs(disclosure: Disclosure, source: Source, suspect: Any, nonce: str | None) -> dict[str, Any]:
    return {
        "opening_sha256": hashlib.sha256(canonical_json(disclosure.to_dict())).hexdigest(),
        "subkey": disclosure.opening.index,
        "method": disclosure.opening.assignment.method,
        "nonce": nonce,
        "statement": {"source": source.name, "commit": source.commit},
        "suspect": {"name": str(suspect) if isinstance(suspect, str | Path) else type(suspect).__name__},
    }


__all__ = ["Disclosure", "Judgement", "Step", "judge"]
