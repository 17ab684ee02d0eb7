"""One claim before a judge who has the opening and nothing else: everything is derived again (protocol.md §2.8)."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from ..evidence import SELF_CHECK, Verdict
from ..hub.describe import BURNT
from ..hub.schema import validated
from ..hub.source import Source
from ..keys import Opening
from ..mapping import method_entry, verify
from ..serialization import InvalidInput, canonical_json, parse_json
from ..suspects import Suspect
from .disclosure import BurntPublic, Disclosure
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
        looks *= 1 if drawn else _choices(source, report, opening)
        detail = (
            "drawn by the judge" if drawn else "chosen by the claimant: all that could have been chosen are charged"
        )
        steps.append(Step("looks", Outcome.PASSED, f"sub-key {opening.index}, {detail} ({looks} looks)"))
        result.looks = looks
        bound = report.beacon if result.level == "B" else None
        result.controls = _controls(source, opening, bound, unmarked or {}, steps)
        result.inputs["suspect"], opened = open_suspect(suspect, source, opening, token)
        evidence = verify(opened, opening, looks=looks, beacon=bound)
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
    spent = []
    if opening.index in statement.opened_subkeys:
        spent.append(f"sub-key {opening.index} is public: anybody could have planted it")
    if opening.index in _burnt(source):
        spent.append(f"sub-key {opening.index} was opened in an earlier dispute and proves nothing any more")
    _step("sub-key", spent, steps)


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


def _burnt(source: Source) -> list[int]:
    raw = source.read(BURNT)
    return [] if raw is None else validated(BurntPublic, parse_json(raw), BURNT).subkeys


def _choices(source: Source, report: LevelReport, opening: Opening) -> int:
    """How many sub-keys the claimant could have picked for this suspect."""
    assert report.signed is not None
    used = {index for method in report.signed.statement.methods for index in method.subkeys}
    return max(1, len(used - set(report.signed.statement.opened_subkeys) - set(_burnt(source))))


def _controls(
    source: Source, opening: Opening, bound: bytes | None, unmarked: Mapping[str, Any], steps: list[Step]
) -> dict[str, Any]:
    """The claimant's own model must pass, unmarked ones must not; decoy keys are part of every verification."""
    own = verify(suspect_of(source, opening), opening, beacon=bound)
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
        evidence = verify(suspect, opening, beacon=bound)
        clean = evidence.log2_p > SELF_CHECK
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
    raw = source.read("config.json", 2**20)
    if raw is None:
        raise InvalidInput(f"{source.name}: config.json is missing, so no suspect can be asked")
    backbone = parse_json(raw, max_bytes=2**20, max_brackets=100_000, allow_floats=True)
    return fixed, Suspect.open(frozen.weights().path, backbone)


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
