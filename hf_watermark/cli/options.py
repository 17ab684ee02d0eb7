"""Options, and what is checked of them, that several commands share."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..serialization import InvalidInput


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..publishing.revocation import SignedRevocation


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Also write the transcript to this new file.")
]
ReportOption = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Also write a self-contained HTML page in plain sentences."),
]
SuspectOption = Annotated[
    str, typer.Option("--suspect", metavar="SOURCE", help="Folder, file, or OWNER/NAME[@REVISION].")
]
DateOption = Annotated[
    str | None,
    typer.Option(
        "--suspect-date",
        metavar="DATE",
        help="Earliest appearance of the suspect that you believe, as 2026-11-22T12:00:00Z.",
    ),
]
TrustOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--trust", metavar="FILE.pem", help="Certificates of timestamp authorities that you trust; may be repeated."
    ),
]
OwnerKeyOption = Annotated[
    str | None,
    typer.Option("--owner-key", metavar="HEX", help="Public key or fingerprint of the owner that you expect."),
]
BeaconOption = Annotated[
    str | None,
    typer.Option(
        "--beacon", metavar="HEX", help="The public value, as you looked it up yourself; 'drand' asks the network."
    ),
]
DrawnOption = Annotated[
    bool, typer.Option("--drawn", help="You, the judge, drew the sub-key; otherwise all possible ones are charged.")
]
LooksOption = Annotated[int, typer.Option("--looks", min=1, help="How many further variants were or will be tried.")]
UnmarkedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--unmarked",
        metavar="SOURCE",
        help="A model without the mark (twin, public base) as a control; may be repeated.",
    ),
]
StartOption = Annotated[
    str | None,
    typer.Option(
        "--start",
        metavar="SOURCE",
        help="The model that the claimant's key was made for, as he delivers it: the reference of a reading that needs no date.",
    ),
]
RevocationOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--revocation",
        metavar="FILE",
        help="A revocation that somebody hands in, beside those that were published; may be repeated. What its owner did not sign is ignored.",
    ),
]
NonceOption = Annotated[
    str,
    typer.Option(
        "--nonce",
        metavar="N",
        help="Your name for this dispute: an opening that was signed for another one is a replay.",
    ),
]
LogOption = Annotated[
    Path | None,
    typer.Option(
        "--log",
        metavar="FILE",
        help="Your own record of openings; says which are spent, and what was looked at before.",
    ),
]
MemoryOption = Annotated[
    float, typer.Option("--max-memory", metavar="GIB", min=0, help="Memory that the files may take; 0 for no limit.")
]
MinutesOption = Annotated[
    float, typer.Option("--max-minutes", metavar="N", min=0, help="Processor time that they may take; 0 for no limit.")
]


def read_revocations(paths: "Sequence[Path]") -> "list[SignedRevocation]":
    """All that are in files which somebody handed in."""
    from ..publishing.revocation import Revocations

    return [entry for path in paths for entry in Revocations.read(path).entries]


def refuse_output(output: Path) -> None:
    """Evidence is a record: an existing file stays. Checked before the work, not after it."""
    if output.name.startswith("-"):
        raise InvalidInput(f"{output}: looks like an option; give the name of a file")
    if os.path.lexists(output):
        raise FileExistsError(f"{output} exists and is left as it is; choose another name")
    if not output.parent.is_dir():
        raise InvalidInput(f"{output}: its folder does not exist; create it or choose another name")


def refuse_report(report: Path) -> None:
    """A page that could not be written is an error before the work, and so are plots that could not be drawn."""
    refuse_output(report)
    from ..evaluation import drawing  # noqa: F401


def refuse_outputs(output: Path | None, report: Path | None) -> None:
    if output is not None:
        refuse_output(output)
    if report is not None:
        refuse_report(report)


def read_date(text: str | None, option: str = "--suspect-date") -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"{option} {text[:40]!r}: write it as 2026-11-22T12:00:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def printable(text: str) -> str:
    """Without control characters, which a hostile file could send to the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
