"""`hf-watermark dispute`."""

import json as json_format
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evidence import Verdict
from ..serialization import write_json_atomic
from ..serialization.confined import GIB, MINUTES
from . import judge as judging
from .errors import FOUND, INCONCLUSIVE, INVALID, NOT_FOUND
from .judge import read_disclosure
from .loading import silence_loading
from .options import (
    DateOption,
    DrawnOption,
    JsonOption,
    LogOption,
    LooksOption,
    MemoryOption,
    MinutesOption,
    NonceOption,
    OutputOption,
    ReportOption,
    RevocationOption,
    SuspectOption,
    TrustOption,
    UnmarkedOption,
    printable,
    read_date,
    read_revocations,
    refuse_outputs,
)


EXAMPLE = "Example:\n\nhf-watermark dispute --suspect you/suspect --opening-a a.json --statement-a me/model --opening-b b.json --statement-b you/model --nonce 2026-11-court-4711"


def dispute(
    suspect: SuspectOption,
    opening_a: Annotated[Path, typer.Option("--opening-a", metavar="FILE", help="What A opened.")],
    statement_a: Annotated[str, typer.Option("--statement-a", metavar="SOURCE", help="A's published model.")],
    opening_b: Annotated[Path, typer.Option("--opening-b", metavar="FILE", help="What B opened.")],
    statement_b: Annotated[str, typer.Option("--statement-b", metavar="SOURCE", help="B's published model.")],
    nonce: NonceOption,
    original_a: Annotated[
        str | None, typer.Option("--original-a", metavar="SOURCE", help="A's committed original.")
    ] = None,
    original_b: Annotated[
        str | None, typer.Option("--original-b", metavar="SOURCE", help="B's committed original.")
    ] = None,
    start_a: Annotated[
        str | None, typer.Option("--start-a", metavar="SOURCE", help="The model that A's key was made for.")
    ] = None,
    start_b: Annotated[str | None, typer.Option("--start-b", metavar="SOURCE", help="The same of B's.")] = None,
    trust: TrustOption = None,
    suspect_date: DateOption = None,
    date_a: Annotated[
        str | None,
        typer.Option(
            "--date-a",
            metavar="DATE",
            help="Earliest appearance of A's published model that you believe, if before its statement.",
        ),
    ] = None,
    date_b: Annotated[str | None, typer.Option("--date-b", metavar="DATE", help="The same of B's.")] = None,
    drawn: DrawnOption = False,
    looks: LooksOption = 1,
    unmarked: UnmarkedOption = None,
    log: LogOption = None,
    revocation: RevocationOption = None,
    json: JsonOption = False,
    output: OutputOption = None,
    report: ReportOption = None,
    max_memory: MemoryOption = GIB,
    max_minutes: MinutesOption = MINUTES,
) -> None:
    """
    Two claimants over one suspect: both marks are searched in it, then each in the other's published model, and where that does not
    decide in what the other committed to as its original.

    Exit status: 0 the order is decided, 1 no finding, 2 bad usage or unreadable input, 3 something stays open, 4 both claims are invalid.
    """
    refuse_outputs(output, report)
    arguments = {
        "suspect": suspect,
        "claims": {
            "A": (opening_a, statement_a, original_a, date_a, start_a),
            "B": (opening_b, statement_b, original_b, date_b, start_b),
        },
        "nonce": nonce,
        "trust": trust or [],
        "suspect_date": suspect_date,
        "drawn": drawn,
        "looks": looks,
        "unmarked": unmarked or [],
        "log": log,
        "revocation": revocation or [],
    }
    with Console(stderr=True).status("Judging both claims ..."):
        result = judging.confined(dispute_files, arguments, max_memory, max_minutes)
    if output is not None:
        write_json_atomic(output, result, overwrite=False)
    if report is not None:
        from ..evaluation.judgement_report import write_dispute

        write_dispute(report, result, suspect)
    if json:
        typer.echo(json_format.dumps(result, indent=2, sort_keys=True))
    else:
        show_dispute(result)
    raise typer.Exit(status_of(result))


def status_of(result: dict[str, Any]) -> int:
    if not result["conclusive"]:
        return INCONCLUSIVE
    if result["upstream"]:
        return FOUND
    verdicts = {transcript["verdict"] for transcript in result["transcripts"].values()}
    return INVALID if verdicts == {Verdict.INVALID} else NOT_FOUND


def dispute_files(
    suspect: str,
    claims: dict[str, tuple[Path, str, str | None, str | None, str | None]],
    nonce: str,
    trust: list[Path],
    suspect_date: str | None,
    drawn: bool,
    looks: int,
    unmarked: list[str],
    log: Path | None,
    revocation: list[Path],
) -> dict[str, Any]:
    """The result of a dispute, with both transcripts."""
    from ..claims import Claimant
    from ..claims import dispute as settle
    from ..publishing.timestamp import read_roots

    silence_loading()
    first, second = (
        Claimant(
            name,
            read_disclosure(opening),
            statement,
            nonce,
            original,
            read_date(date, f"--date-{name.lower()}"),
            start,
        )
        for name, (opening, statement, original, date, start) in claims.items()
    )
    judging = {
        "roots": read_roots(trust),
        "suspect_time": read_date(suspect_date),
        "drawn": drawn,
        "looks": looks,
        "unmarked": {name: name for name in unmarked},
        "log": log,
        "revocations": read_revocations(revocation),
    }
    return settle(first, second, suspect, **judging).to_dict()


def show_dispute(result: dict[str, Any]) -> None:
    console = Console()
    table = Table("question", "answer")
    for question, answer in result["answers"].items():
        table.add_row(question, "yes" if answer else "no")
    console.print(table)
    for note in result["notes"]:
        console.print(Text(printable(note), style="yellow"), soft_wrap=True)
    console.print(Text(result["verdict"], style="bold"))
