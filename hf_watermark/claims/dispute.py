"""Two claimants over one model: who built on whom (PROTOCOL.md §2.9)."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ..evidence import Basis, Check, Verdict
from ..hub.source import Source
from ..mapping import run_check
from ..serialization import InvalidInput, SafetensorsFolder, tensor_set_digest
from .disclosure import Disclosure
from .judge import judge, open_suspect
from .judgement import Judgement
from .report import Outcome


@dataclass(frozen=True)
class Claimant:
    """
    Args:
        name (`str`):
            How the verdict calls this side.
        original (`str` or `Path`, *optional*):
            The model that this side started from, as committed in its statement. By default its published model; where the statement
            commits to an unmarked original, withholding it counts against this side.
    """

    name: str
    disclosure: Disclosure
    statement: Source | str | Path
    original: str | Path | None = None
    nonce: str | None = None


@dataclass
class DisputeResult:
    """
    Args:
        answers (`dict[str, bool]`):
            The four columns of the table.
        upstream (`list[str]`):
            Sides whose mark is older in this lineage; empty for no finding, both where the order stays open.
        conclusive (`bool`):
            Whether the order is decided.
    """

    answers: dict[str, bool]
    notes: list[str]
    upstream: list[str]
    conclusive: bool
    verdict: str
    judgements: dict[str, Judgement] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": "hf-watermark/dispute/v1",
            "answers": self.answers,
            "notes": self.notes,
            "upstream": self.upstream,
            "conclusive": self.conclusive,
            "verdict": self.verdict,
            "transcripts": {name: judgement.transcript for name, judgement in self.judgements.items()},
        }


def dispute(first: Claimant, second: Claimant, suspect: Any, **judging: Any) -> DisputeResult:
    """
    Searches both marks in the suspect, then each in the other's committed original.

    Args:
        judging (*optional*):
            What [`judge`] takes: `roots`, `suspect_time`, `drawn`, ...

    Returns:
        [`DisputeResult`]: with the row of the table. The output is lineage; licence terms decide the rest.
    """
    sides, notes = (first, second), []
    if first.name == second.name:
        raise ValueError(f"both claimants are called {first.name!r}; name them apart")
    judgements = {
        side.name: judge(side.disclosure, suspect, side.statement, nonce=side.nonce, **judging) for side in sides
    }
    in_suspect = {name: judgement.found for name, judgement in judgements.items()}
    answers = {f"{name} in the suspect": found for name, found in in_suspect.items()}
    notes += [
        f"{name}: {judgement.verdict}, {judgement.reason}"
        for name, judgement in judgements.items()
        if not judgement.found
    ]
    inside = {}
    if all(in_suspect.values()):
        for side, other in (sides, sides[::-1]):
            inside[side.name] = _is_in_original(side, other, judgements, judging.get("token"), notes)
            answers[f"{side.name} in the original of {other.name}"] = inside[side.name]
    upstream, conclusive, verdict = _row(first.name, second.name, in_suspect, inside, judgements)
    return DisputeResult(answers, notes, upstream, conclusive, verdict, judgements)


def _is_in_original(
    side: Claimant, other: Claimant, judgements: dict[str, Judgement], token: str | bool | None, notes: list[str]
) -> bool:
    """Whether `side`'s mark is in what `other` committed to; an original that is withheld or exchanged counts as yes."""
    try:
        original = _committed_original(other, judgements[other.name], token)
    except InvalidInput as error:
        notes.append(
            f"{other.name} delivers no committed original ({error}); this counts as if {side.name}'s mark were in it"
        )
        return True
    opening, judgement = side.disclosure.opening, judgements[side.name]
    check = Check(bound=judgement.level == "B", looks=judgement.looks, basis=Basis.CLAIM, disclosed=opening.disclosed)
    _, model = open_suspect(original, Source.open(side.statement, token), opening, token)
    return run_check(model, opening, check).verdict is Verdict.FOUND


def _committed_original(side: Claimant, judgement: Judgement, token: str | bool | None) -> Path:
    signed = judgement.report.signed
    assert signed is not None  # its mark was found, so its statement held
    committed = signed.statement.original_tensor_set_sha256
    if side.original is None:
        if committed is not None:
            raise InvalidInput("its statement commits to an original, which is withheld")
        return Source.open(side.statement, token).weights().path
    original: SafetensorsFolder = Source.open(side.original, token).weights()
    if tensor_set_digest(original) not in (committed, signed.statement.weights.tensor_set_sha256):
        raise InvalidInput("what was delivered is not what its statement commits to")
    return original.path


def _row(
    x: str, y: str, in_suspect: dict[str, bool], inside: dict[str, bool], judgements: dict[str, Judgement]
) -> tuple[list[str], bool, str]:
    """`(upstream, conclusive, verdict)` of the table."""
    found = [name for name in (x, y) if in_suspect[name]]
    if not found:
        return [], True, "no finding"
    if len(found) == 1:
        return found, True, f"the suspect descends from {found[0]}'s mark"
    if inside[x] and not inside[y]:
        return [x], True, f"{y} built on {x}: {x} is upstream"
    if inside[y] and not inside[x]:
        return [y], True, f"{x} built on {y}: {y} is upstream"
    earlier = _earlier(x, y, judgements)
    if not inside[x]:
        order = f"; {earlier}'s statement is the older one" if earlier else ""
        return (
            [x, y],
            False,
            f"the suspect merges both, or an original is withheld: both are upstream, the order is open{order}",
        )
    if earlier:
        return (
            [earlier],
            True,
            f"one of the originals is none; {earlier}'s statement, which binds its model, is the older one",
        )
    return (
        [x, y],
        False,
        "one of the originals is none, and no trusted timestamp says whose statement is older: inconclusive",
    )


def _earlier(x: str, y: str, judgements: dict[str, Judgement]) -> str | None:
    """Whose statement has the older trusted date; its digests are inside the statement, and were checked (V1)."""
    times: dict[str, datetime] = {}
    for name in (x, y):
        report = judgements[name].report
        if report.statement_time is None or report["V1"].outcome is not Outcome.PASSED:
            return None
        times[name] = report.statement_time
    if times[x] == times[y]:
        return None
    return min(times, key=lambda name: times[name])


__all__ = ["Claimant", "DisputeResult", "dispute"]
