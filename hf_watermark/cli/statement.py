"""`hf-watermark statement show | check | compare`."""

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..serialization import InvalidInput
from .errors import FOUND, INCONCLUSIVE, NOT_FOUND
from .loading import silence_loading
from .options import (
    BeaconOption,
    JsonOption,
    OwnerKeyOption,
    RevocationOption,
    TrustOption,
    printable,
    read_revocations,
)


if TYPE_CHECKING:
    from ..claims import LevelReport

SHOW_EXAMPLE = "Example:\n\nhf-watermark statement show me/my-model"
CHECK_EXAMPLE = "Example:\n\nhf-watermark statement check me/my-model --trust authority.pem"
COMPARE_EXAMPLE = "Example:\n\nhf-watermark statement compare seen.json seen-by-a-friend.json"

SourceArgument = Annotated[str, typer.Argument(help="Folder, or OWNER/NAME[@REVISION] on the Hub.")]


def show(source: SourceArgument) -> None:
    """Print a statement as it is. Nothing is checked: use `statement check`."""
    from ..publishing.statement import STATEMENT, SignedStatement
    from ..suspects.source import Source

    opened = Source.open(source)
    raw = opened.read(STATEMENT)
    if raw is None:
        raise InvalidInput(f"{source}: has no {STATEMENT}; this model makes no claim")
    typer.echo(json_format.dumps(SignedStatement.parse(raw, STATEMENT).plain(), indent=2))


def check(
    source: SourceArgument,
    trust: TrustOption = None,
    beacon: BeaconOption = None,
    owner_key: OwnerKeyOption = None,
    repo_id: Annotated[
        str | None, typer.Option("--repo-id", metavar="OWNER/NAME", help="Where a folder was downloaded from.")
    ] = None,
    seen: Annotated[
        Path | None,
        typer.Option(
            "--seen", metavar="FILE", help="Keep the statements that you have seen here; say when two contradict."
        ),
    ] = None,
    revocation: RevocationOption = None,
    json: JsonOption = False,
) -> None:
    """
    Check what anybody can check about a published model: levels V0 (signature), V1 (files), V2 (dates), V3 (the opened sub-key).

    Exit status: 0 nothing speaks against it, 1 something does, 2 bad usage or unreadable, 3 it makes no claim.
    """
    from ..claims import check as check_levels
    from ..publishing.timestamp import read_roots

    silence_loading()
    with Console(stderr=True).status("Checking ..."):
        report = check_levels(
            source,
            read_roots(trust or []),
            owner_key,
            repo_id,
            None if beacon is None else read_beacon(beacon, source),
            revocations=read_revocations(revocation or []),
        )
    contradicting: list[str] = []
    if seen is not None and report.signed is not None and report.signed.is_signed:
        from ..claims.sightings import note_sighting

        contradicting = note_sighting(seen, report.signed, report.commit)
    if json:
        noted = {} if seen is None else {"contradictions": contradicting}
        typer.echo(json_format.dumps(report.to_dict() | noted, indent=2, sort_keys=True))
    else:
        show_levels(report)
        show_contradictions(contradicting)
    failed = report.failed or contradicting
    raise typer.Exit(NOT_FOUND if failed else INCONCLUSIVE if report.reached is None else FOUND)


def compare(
    mine: Annotated[Path, typer.Argument(help="What `statement check --seen` wrote for you.")],
    theirs: Annotated[Path, typer.Argument(help="The same file of another reader.")],
) -> None:
    """
    Compare what two readers were shown. Two signed statements that take the same place in one history prove a split view.

    Exit status: 0 no contradiction, 1 some, 2 bad usage or unreadable.
    """
    from ..claims.sightings import contradictions, read_sightings

    first, second = read_sightings(mine), read_sightings(theirs)
    found = contradictions(first.statements, second.statements)
    show_contradictions(found)
    typer.echo(f"{len(found)} contradictions; heads {first.head[:16]} and {second.head[:16]}")
    raise typer.Exit(NOT_FOUND if found else FOUND)


def read_beacon(text: str, source: str) -> bytes:
    """A beacon as the user looked it up, or as a drand relay says it is."""
    if text == "drand":
        from ..publishing.beacon import look_up
        from ..publishing.statement import STATEMENT, SignedStatement
        from ..suspects.source import Source

        raw = Source.open(source).read(STATEMENT)
        if raw is None:
            raise InvalidInput(f"{source}: has no {STATEMENT}, so no beacon can be looked up")
        return look_up(SignedStatement.parse(raw).statement.beacon_source).value
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 32:
        raise InvalidInput(f"--beacon {text[:80]!r}: write 64 hexadecimal digits, or 'drand'")
    return value


def show_levels(report: "LevelReport") -> None:
    from ..publishing.findings import TITLES

    console = Console()
    if report.signed is None and not report.failed:
        # Nobody claims anything, so there are no levels to show.
        console.print(Text(f"{report.source}: {printable(report.levels[0].reasons[0])}"), soft_wrap=True)
        return
    table = Table("level", "what", "outcome", "seen")
    styles = {"passed": "green", "failed": "bold red", "open": "yellow"}
    for level in report.levels:
        outcome = Text(str(level.outcome), style=styles[str(level.outcome)])
        facts = "; ".join(f"{name}: {value}" for name, value in level.facts.items() if value is not None)
        # As plain text: words from a repository must not become markup on the terminal.
        table.add_row(level.name, TITLES[level.name], outcome, Text(facts))
    console.print(table)
    for level in report.levels:
        for reason in level.reasons:
            console.print(Text(f"{level.name}: {printable(reason)}"), soft_wrap=True)
    for revocation in report.revocations:
        console.print(
            Text(f"revoked: {revocation}; what was signed and dated before stays", style="yellow"), soft_wrap=True
        )
    console.print(Text(f"{report.source}: level {report.reached or 'none'} reached"), soft_wrap=True)


def show_contradictions(found: list[str]) -> None:
    for contradiction in found:
        Console().print(Text(f"contradiction: {printable(contradiction)}", style="bold red"), soft_wrap=True)
