"""Level V3, and what a judge needs as well: whether an opened sub-key belongs to a statement, and the models it is read from."""

from dataclasses import replace
from typing import Any

from ..evidence import Access, Basis, Check, Verdict
from ..keys import CommitmentProblem, Opening, ProblemKind, in_words
from ..mapping import method_entry
from ..publishing.describe import POOL, SUBKEY0
from ..publishing.statement import Statement
from ..serialization import InvalidInput, SafetensorsFolder, parse_json
from ..suspects import Suspect
from ..suspects.source import RepoSource, Source
from ..verifying import run_check
from .belonging import opening_problems
from .report import Level, LevelReport, Outcome


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
        problems.append(CommitmentProblem(ProblemKind.SUBKEY, f"{SUBKEY0} opens sub-key {opening.index}"))
    if problems:
        raise InvalidInput(in_words(problems))
    opening = replace(opening, pool=_pool(source, opening))
    if opening.assignment.layout.get("pool_sha256") is not None and not opening.pool:
        level.outcome = Outcome.OPEN
        level.reasons = [f"`{opening.assignment.method}` needs the owner's source images, which are not published"]
        return
    # Read on purpose although it is public: V3 says that the model carries its owner's mark, and nothing about any other model.
    evidence = run_check(
        suspect_of(source, opening), opening, Check(bound=report.beacon is not None, basis=Basis.CLAIM)
    )
    report.evidence = evidence
    level.facts = {"log2 p": round(evidence.log2_p, 1), "matches": f"{evidence.matches}/{evidence.trials}"}
    if evidence.verdict is Verdict.FOUND:
        return
    level.outcome = Outcome.OPEN if evidence.verdict is Verdict.INCONCLUSIVE else Outcome.FAILED
    level.reasons.append(f"sub-key 0 on the published model: {evidence.verdict} ({evidence.reason})")


def suspect_of(source: Source, opening: Opening) -> Suspect:
    """The published model as a suspect; black-box methods ask it on the architecture that was committed."""
    if method_entry(opening.assignment.method).access == Access.WEIGHTS:
        return weights_of(source)
    return Suspect.open(source.weights().path, opening.backbone)


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
