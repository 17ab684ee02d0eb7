"""What a visitor can ask: a published model, a claim about a suspect; on his own machine also a key of his."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..claims import Disclosure, LevelReport, Outcome, check, judge
from ..evidence import Evidence, Verdict
from ..keys import WatermarkKey, WrongPassphrase
from ..publishing.findings import TITLES
from ..serialization import InvalidInput
from ..suspects import Suspect
from ..suspects.source import Source, parse_repo
from ..verifying import verify


# PROTOCOL.md §4.2: what a public Space reads at most.
SPACE_BYTES = 2 * 2**30
OPENING_CHARACTERS = 262_144


@dataclass(frozen=True)
class Result:
    """
    What the page shows.

    Args:
        headline, text (`str`):
            In one line, and in a sentence.
        state (`str`):
            `good`, `bad` or `plain`.
        evidence ([`Evidence`], *optional*), levels (`dict`, *optional*):
            Numbers behind it.
        steps (`list`):
            Lines `(name, outcome, detail)` of a judgement.
    """

    subject: str
    headline: str
    text: str
    state: str
    evidence: Evidence | None = None
    levels: dict[str, Any] | None = None
    steps: list[tuple[str, str, str]] = field(default_factory=list)


Progress = Callable[[str], None]


def check_repository(
    repo: str, progress: Progress, token: str | bool | None = False, most: int = SPACE_BYTES
) -> Result:
    """Levels V0 to V3 of a published model."""
    repo = repository(repo)
    progress("Reading the list of files")
    source = Source.open(repo, token)
    refuse_large(source, most)
    report = check(source, token=token, progress=lambda level: progress(f"{level}: {TITLES[level]}"))
    headline, text, state = in_words(report)
    levels = report.to_dict()
    for level in levels["levels"]:
        level["reasons"] = [without_options(reason) for reason in level["reasons"]]
    return Result(repo, headline, without_options(text), state, report.evidence, levels)


def judge_claim(
    statement: str,
    suspect: str,
    opening: str,
    progress: Progress,
    token: str | bool | None = False,
    most: int = SPACE_BYTES,
) -> Result:
    """Level V4: the claim that one opened sub-key is in a suspect repository."""
    if len(opening) > OPENING_CHARACTERS:
        raise InvalidInput(f"the opening has {len(opening)} characters, limit {OPENING_CHARACTERS}")
    disclosure = Disclosure.parse(opening.strip().encode())
    statement, suspect = repository(statement), repository(suspect)
    progress("Reading both repositories")
    sources = [Source.open(repo, token) for repo in (statement, suspect)]
    for source in sources:
        refuse_large(source, most)
    progress("Judging: commitment, controls, then the suspect")
    result = judge(disclosure, sources[1], sources[0], token=token)
    state = {Verdict.FOUND: "good", Verdict.INVALID: "bad"}.get(result.verdict, "plain")
    steps = [(step.name, str(step.outcome), without_options(step.detail)) for step in result.steps]
    return Result(
        suspect,
        str(result.verdict).capitalize(),
        result.reason,
        state,
        result.evidence,
        result.report.to_dict(),
        steps,
    )


def check_with_key(suspect: str, folder: str, passphrase: str, progress: Progress) -> Result:
    """The owner's own check, for the local app only."""
    progress("Opening the key")
    try:
        key = WatermarkKey.load(folder.strip(), passphrase or None)
    except WrongPassphrase as error:
        raise InvalidInput(f"the passphrase does not open this key ({error})") from None
    progress("Checking the suspect")
    evidence = verify(Suspect.open(suspect.strip(), key.backbone), key)
    state = {Verdict.FOUND: "good", Verdict.INVALID: "bad"}.get(evidence.verdict, "plain")
    return Result(suspect.strip(), str(evidence.verdict).capitalize(), evidence.reason, state, evidence)


def repository(text: str) -> str:
    """
    What a visitor typed, if it names a repository on the Hub and nothing on this machine.

    Raises:
        [`~serialization.InvalidInput`]: for paths, and for the name of something that lies in the app's own working directory.
    """
    name = text.strip()
    if parse_repo(name) is None:
        raise InvalidInput(
            f"{name[:200]!r} is no name of a repository on the Hub; enter owner/name or owner/name@revision"
        )
    if any(os.path.lexists(place) for place in (name, name.partition("@")[0])):
        raise InvalidInput(
            f"{name[:200]!r} is also the name of a file on the machine of this page, which is never opened"
        )
    return name


def refuse_large(source: Source, most: int) -> None:
    size = sum(size for name, size in source.sizes.items() if name.endswith(".safetensors"))
    if size > most:
        raise InvalidInput(
            f"{source.name}: its weights have {size / 1e9:.1f} GB, this page reads at most {most / 1e9:.1f} GB; run "
            f"`hf-watermark statement check {source.name}` on your own machine"
        )


def in_words(report: LevelReport) -> tuple[str, str, str]:
    """Headline, sentence and state of the levels together."""
    first = report["V0"]
    if report.signed is None and first.outcome is Outcome.OPEN:
        return (
            "No statement",
            "This repository publishes no watermark statement: it makes no claim, so there is nothing to check.",
            "plain",
        )
    for level in report.levels:
        if level.outcome is Outcome.FAILED:
            return "The statement does not hold", f"{level.name}: {'; '.join(level.reasons)}", "bad"
    owner = report.signed.statement.fingerprint if report.signed else "unknown"
    if report["V3"].outcome is Outcome.PASSED:
        gaps = [
            f"{level.name}: {'; '.join(level.reasons)}" for level in report.levels if level.outcome is Outcome.OPEN
        ]
        text = f"The mark of owner {owner} is in this model: sub-key 0, which the owner opened for everybody, is read from its weights."
        return "Mark found", text + (f" Still open: {'; '.join(gaps)}." if gaps else ""), "good"
    return "Inconclusive", "; ".join(reason for level in report.levels for reason in level.reasons), "plain"


def without_options(text: str) -> str:
    """Reasons name options and commands of a terminal, which a page does not have."""
    text = re.sub(r" \(--[a-z-]+( [A-Z]+)?\)", "", text)
    return re.sub(r", (or|then) log in with `hf auth login`", "", text)


# The page
