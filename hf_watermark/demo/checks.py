"""What a visitor can ask: a published model, a claim about a suspect; on their own machine also a folder, and a key of theirs."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..claims import Disclosure, LevelReport, Outcome, check, judge
from ..evaluation.judgement_report import sentence
from ..evaluation.verdict_report import STATES
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
        evidence (`dict`, *optional*), levels (`dict`, *optional*):
            Numbers behind it.
        steps (`list`):
            Lines `(sentence, outcome, detail)` of a judgement; the sentence is true where it passed.
        ask_next (`list`):
            `(whom, what)` that would help a judge, the most useful first.
    """

    subject: str
    headline: str
    text: str
    state: str
    evidence: dict[str, Any] | None = None
    levels: dict[str, Any] | None = None
    steps: list[tuple[str, str, str]] = field(default_factory=list)
    ask_next: list[tuple[str, str]] = field(default_factory=list)


Progress = Callable[[str], None]


def check_repository(
    repo: str, progress: Progress, token: str | bool | None = False, most: int = SPACE_BYTES, local: bool = False
) -> Result:
    """Levels V0 to V3 of a published model; `local` allows a folder of this machine as well."""
    place = place_of(repo, local)
    progress("Reading the list of files")
    source = open_source(place, token, most)
    report = check(source, token=token, progress=lambda level: progress(f"{level}: {TITLES[level]}"))
    headline, text, state = in_words(report)
    levels = report.to_dict()
    for level in levels["levels"]:
        level["reasons"] = [without_options(reason) for reason in level["reasons"]]
    evidence = report.evidence.to_dict() if report.evidence else None
    return Result(repo.strip(), headline, without_options(text), state, evidence, levels)


def judge_claim(
    statement: str,
    suspect: str,
    opening: str,
    progress: Progress,
    nonce: str,
    token: str | bool | None = False,
    most: int = SPACE_BYTES,
    local: bool = False,
) -> Result:
    """
    Level V4: the claim that one opened sub-key is in a suspect.

    Args:
        nonce (`str`):
            The name that the judge gave to the dispute: an opening that was made for another one is refused.
    """
    if len(opening) > OPENING_CHARACTERS:
        raise InvalidInput(f"the opening has {len(opening)} characters, limit {OPENING_CHARACTERS}")
    disclosure = Disclosure.parse(opening.strip().encode())
    places = [place_of(name, local) for name in (statement, suspect)]  # both, before anything is opened
    progress("Reading both models")
    claimed, suspected = (open_source(place, token, most) for place in places)
    progress("Judging: commitment, controls, then the suspect")
    result = judge(disclosure, suspected, claimed, nonce.strip(), token=token)
    return Result(
        suspect.strip(),
        str(result.verdict).capitalize(),
        result.reason,
        STATES.get(result.verdict, "plain"),
        result.evidence.to_dict() if result.evidence else None,
        result.report.to_dict(),
        [(sentence(step.to_dict()), str(step.outcome), without_options(step.detail)) for step in result.steps],
        [(request.whom, without_options(request.what)) for request in result.requests],
    )


def check_with_key(suspect: str, folder: str, passphrase: str, progress: Progress) -> Result:
    """The owner's own check, for the local app only."""
    progress("Opening the key")
    try:
        key = WatermarkKey.load(Path(folder.strip()).expanduser(), passphrase or None)
    except WrongPassphrase as error:
        raise InvalidInput(f"the passphrase does not open this key ({error})") from None
    progress("Checking the suspect")
    evidence = verify(Suspect.open(os.path.expanduser(suspect.strip()), key.backbone), key)
    verdict = evidence.verdict
    return Result(
        suspect.strip(),
        str(verdict).capitalize(),
        evidence.reason,
        STATES.get(verdict, "plain"),
        evidence.to_dict(),
    )


def open_source(place: str | Path, token: str | bool | None, most: int) -> Source:
    source = Source.open(place, token)
    refuse_large(source, most)
    return source


def place_of(text: str, local: bool) -> str | Path:
    """What a visitor typed: a repository, or on their own machine a folder; errors as of [`repository`]."""
    folder = Path(text.strip()).expanduser()
    return folder if local and text.strip() and folder.is_dir() else repository(text, local)


def repository(text: str, local: bool = False) -> str:
    """
    What a visitor typed, if it names a repository on the Hub and nothing on this machine.

    Raises:
        [`~serialization.InvalidInput`]: for paths, and for the name of something that lies in the app's own working directory.
    """
    name = text.strip()
    if parse_repo(name) is None:
        folder = " and no folder of this machine" if local else ""
        raise InvalidInput(
            f"{name[:200]!r} is no name of a repository on the Hub{folder}; enter owner/name or owner/name@revision"
            + (", or a folder" if local else "")
        )
    if any(os.path.lexists(place) for place in (name, name.partition("@")[0])):
        opened = "is no folder" if local else "is never opened"
        raise InvalidInput(f"{name[:200]!r} is also the name of a file on the machine of this page, which {opened}")
    return name


def refuse_large(source: Source, most: int) -> None:
    size = sum(size for name, size in source.sizes.items() if name.endswith(".safetensors"))
    if size > most:
        raise InvalidInput(
            f"{source.name}: its weights have {size / 2**30:.1f} GiB, this page reads at most {most / 2**30:.1f} GiB; run "
            f"`hf-watermark statement check {source.name}` in a terminal of your own"
        )


def in_words(report: LevelReport) -> tuple[str, str, str]:
    """Headline, sentence and state of the levels together."""
    first = report["V0"]
    if report.signed is None and first.outcome is Outcome.OPEN:
        return (
            "No statement",
            "This model comes without a watermark statement: its publisher makes no claim, so there is nothing to check.",
            "plain",
        )
    for level in report.levels:
        if level.outcome is Outcome.FAILED:
            return "The statement does not hold", f"{level.name}: {'; '.join(level.reasons)}", "bad"
    owner = report.signed.statement.fingerprint if report.signed else "unknown"
    if report["V3"].outcome is Outcome.PASSED:
        gaps = [level.name for level in report.levels if level.outcome is Outcome.OPEN]
        text = f"The mark of owner {owner} is in this model: sub-key 0, which the owner opened for everybody, is read from its weights."
        return "Mark found", text + (f" Still open, see below: {', '.join(gaps)}." if gaps else ""), "good"
    return "Inconclusive", "; ".join(reason for level in report.levels for reason in level.reasons), "plain"


def without_options(text: str) -> str:
    """Reasons name options and commands of a terminal, which a page does not have."""
    text = re.sub(r" \(--[a-z-]+( [A-Z]+)?\)", "", text)
    return re.sub(r", (or|then) log in with `hf auth login`", "", text)
