"""`hf-watermark judge`."""

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ..serialization import InvalidInput, write_json_atomic
from ..serialization.confined import GIB, MINUTES, confined
from .disclose import pool_path
from .errors import leave
from .loading import silence_loading
from .options import (
    BeaconOption,
    DateOption,
    DrawnOption,
    JsonOption,
    LogOption,
    LooksOption,
    MemoryOption,
    MinutesOption,
    NonceOption,
    OutputOption,
    OwnerKeyOption,
    ReportOption,
    RevocationOption,
    StartOption,
    SuspectOption,
    TrustOption,
    UnmarkedOption,
    printable,
    read_date,
    read_revocations,
    refuse_outputs,
)
from .passphrase import read_passphrase
from .secrets import OwnerFd, OwnerFile, load_owner
from .statement import read_beacon


if TYPE_CHECKING:
    from ..claims.disclosure import Disclosure

EXAMPLE = "Example:\n\nhf-watermark judge --opening opening.json --suspect you/suspect --statement me/my-model --nonce 2026-11-court-4711"
OPENING_BYTES = 2**20


def judge(
    opening: Annotated[Path, typer.Option("--opening", metavar="FILE", help="What the claimant opened.")],
    suspect: SuspectOption,
    statement: Annotated[str, typer.Option("--statement", metavar="SOURCE", help="The claimant's published model.")],
    nonce: NonceOption,
    trust: TrustOption = None,
    beacon: BeaconOption = None,
    owner_key: OwnerKeyOption = None,
    suspect_date: DateOption = None,
    drawn: DrawnOption = False,
    looks: LooksOption = 1,
    unmarked: UnmarkedOption = None,
    start: StartOption = None,
    log: LogOption = None,
    revocation: RevocationOption = None,
    json: JsonOption = False,
    output: OutputOption = None,
    report: ReportOption = None,
    sign_as: Annotated[
        Path | None,
        typer.Option("--sign-as", metavar="FILE", help="Sign the transcript with this owner file of yours."),
    ] = None,
    owner_passphrase_fd: OwnerFd = None,
    owner_passphrase_file: OwnerFile = None,
    max_memory: MemoryOption = GIB,
    max_minutes: MinutesOption = MINUTES,
) -> None:
    """
    Judge a claim without the key: commitment, signature, dates, looks and controls are derived again, then the suspect is read.

    A white-box mark that is not read directly is looked for again in the coordinates of the model that the key was made for (--start), or of
    the claimant's published model; that counts only with trusted dates (--trust, --suspect-date) and an --unmarked model that it descends from.

    Opening, statement and suspect come from strangers: they are read in a process of its own, which never holds your signing key.

    Exit status: 0 mark found, 1 not found, 2 bad usage or unreadable input, 3 inconclusive, 4 invalid claim.
    """
    refuse_outputs(output, report)
    if sign_as is not None and output is None:
        raise InvalidInput("--sign-as signs the transcript; give --output FILE as well")
    secret = read_passphrase(owner_passphrase_fd, owner_passphrase_file)
    arguments = {
        "opening": opening,
        "suspect": suspect,
        "statement": statement,
        "nonce": nonce,
        "trust": trust or [],
        "beacon": beacon,
        "owner_key": owner_key,
        "suspect_date": suspect_date,
        "drawn": drawn,
        "looks": looks,
        "unmarked": unmarked or [],
        "start": start,
        "log": log,
        "revocation": revocation or [],
    }
    with Console(stderr=True).status("Judging ..."):
        transcript = confined(judge_files, arguments, max_memory, max_minutes)
    document = transcript
    if sign_as is not None:
        from ..claims.judgement import signed_transcript

        document = signed_transcript(transcript, load_owner(sign_as, secret))
    if output is not None:
        write_json_atomic(output, document, overwrite=False)
    if report is not None:
        from ..evaluation.judgement_report import write_judgement

        write_judgement(report, transcript)
    if json:
        typer.echo(json_format.dumps(document, indent=2, sort_keys=True))
    else:
        show_judgement(transcript)
    leave(transcript["verdict"])


def judge_files(
    opening: Path,
    suspect: str,
    statement: str,
    nonce: str,
    trust: list[Path],
    beacon: str | None,
    owner_key: str | None,
    suspect_date: str | None,
    drawn: bool,
    looks: int,
    unmarked: list[str],
    start: str | None,
    log: Path | None,
    revocation: list[Path],
) -> dict[str, Any]:
    """The transcript of one claim."""
    from ..claims import judge as decide
    from ..publishing.timestamp import read_roots

    silence_loading()
    result = decide(
        read_disclosure(opening),
        suspect,
        statement,
        nonce=nonce,
        roots=read_roots(trust),
        public_key=owner_key,
        beacon=None if beacon is None else read_beacon(beacon, statement),
        suspect_time=read_date(suspect_date),
        drawn=drawn,
        looks=looks,
        unmarked={name: name for name in unmarked},
        start=start,
        log=log,
        revocations=read_revocations(revocation),
    )
    return result.transcript


def read_disclosure(path: Path) -> "Disclosure":
    """An opening from a file, with the source images beside it if there are any."""
    from ..claims.disclosure import Disclosure
    from ..serialization import SafetensorsFolder
    from ..serialization.files import naming, open_regular, read_all

    pool = dict(SafetensorsFolder(pool_path(path))) if pool_path(path).is_file() else None
    with naming(path), open_regular(path) as (file, _):
        return Disclosure.parse(read_all(file, OPENING_BYTES), pool)


def show_judgement(transcript: dict[str, Any]) -> None:
    from ..evidence import Verdict

    console, ledger, evidence = Console(), transcript["ledger"], transcript["evidence"]
    for step in transcript["steps"]:
        console.print(Text(f"{step['outcome']:7} {step['step']}: {printable(step['detail'])}"), soft_wrap=True)
    looks = "1 look was" if ledger["looks"] == 1 else f"{ledger['looks']} looks were"
    console.print(Text(f"level {ledger['level']} was asked for; {looks} charged"))
    if evidence is not None and evidence["trials"]:
        console.print(Text(by_chance(evidence["log2_p"], ledger["level"])), soft_wrap=True)
    if transcript["ask_next"]:
        console.print(Text("\nWhat to ask for next:", style="bold"))
    for request in transcript["ask_next"]:
        said = f"  {request['option']}: {request['what']} (from {request['whom']})"
        console.print(Text(printable(said)), soft_wrap=True)
    # Last and by itself, so that nobody has to look for it.
    style = "bold green" if transcript["verdict"] == Verdict.FOUND else "bold red"
    verdict = Text(f"\n{transcript['verdict']}: ", style=style)
    console.print(verdict.append(printable(transcript["reason"]), style="default"), soft_wrap=True)


def by_chance(log2_p: float, level: str) -> str:
    """The error rate in words."""
    from ..evidence import LEVEL_B, LEVEL_N, once_in

    allowed = once_in(LEVEL_B if level == "B" else LEVEL_N)
    often = f"once in 10^{once_in(log2_p)}" if once_in(log2_p) > 1 else "often"
    return f"an unrelated key does as well {often}; level {level} allows once in 10^{allowed} (log2 p is never quoted below -256)"
