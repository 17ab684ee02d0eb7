"""`hf-watermark verify`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..serialization import InvalidInput, write_json_atomic
from .errors import FOUND, INCONCLUSIVE, NOT_FOUND
from .loading import silence_loading
from .passphrase import PassphraseFd, PassphraseFile, open_secret, read_passphrase


if TYPE_CHECKING:
    from ..evidence import Evidence
    from ..keys import Opening, WatermarkKey

EXAMPLE = "Example:\n\nhf-watermark verify suspect-folder --key keys/my-model --output evidence.json"


def verify(
    suspect: Annotated[Path, typer.Argument(help="Model folder or .safetensors file to check.")],
    key: Annotated[Path | None, typer.Option("--key", metavar="DIR", help="The owner's key folder.")] = None,
    opening: Annotated[
        Path | None, typer.Option("--opening", metavar="FILE", help="One disclosed sub-key, instead of --key.")
    ] = None,
    looks: Annotated[
        int, typer.Option("--looks", min=1, help="How many variants of this check were or will be tried.")
    ] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the evidence as JSON and nothing else.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Also write the evidence to this new JSON file.")
    ] = None,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """
    Check whether a model carries the mark of a key.

    Exit status: 0 mark found, 1 not found or invalid claim, 2 bad usage or unreadable input, 3 inconclusive.
    """
    if (key is None) == (opening is None):
        raise InvalidInput("give exactly one of --key DIR and --opening FILE")
    if output is not None:
        refuse_output(output)
    passphrase = read_passphrase(passphrase_fd, passphrase_file)

    from ..evidence import Verdict
    from ..mapping import verify as check

    silence_loading()
    claim = _load_claim(key, opening, passphrase)
    with Console(stderr=True).status("Checking ..."):
        evidence = check(suspect, claim, looks=looks)
    if output is not None:
        write_json_atomic(output, evidence.to_dict(), overwrite=False)
    if json:
        typer.echo(evidence.to_json())
    else:
        show_evidence(evidence)
    status = {Verdict.FOUND: FOUND, Verdict.INCONCLUSIVE: INCONCLUSIVE}
    raise typer.Exit(status.get(evidence.verdict, NOT_FOUND))


def refuse_output(output: Path) -> None:
    """Evidence is a record: an existing file stays. Checked before the work, not after it."""
    if os.path.lexists(output):
        raise FileExistsError(f"{output} exists and is left as it is; choose another --output")
    if not output.parent.is_dir():
        raise InvalidInput(f"{output}: its folder does not exist; create it or choose another --output")


def show_evidence(evidence: "Evidence") -> None:
    """A table with one row per method, then verdict, reason and warnings."""
    console = Console()
    if evidence.trials:
        table = Table("method", "matches", "log2 p", "level", "verdict")
        for part in evidence.parts if evidence.method == "combined" else [evidence]:
            matches = f"{part.matches}/{part.trials}"
            table.add_row(part.method, matches, f"{part.log2_p:.1f}", part.level, str(part.verdict))
        console.print(table)
    style = "bold green" if evidence.found else "bold red"
    console.print(Text(f"{evidence.verdict}: ", style=style).append(evidence.reason, style="default"))
    for warning in evidence.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))


def _load_claim(key: Path | None, opening: Path | None, passphrase: str | None) -> "WatermarkKey | Opening":
    from ..keys import Opening, WatermarkKey
    from ..mapping import method_entry

    if opening is not None:
        disclosed = Opening.load(opening)
        access = method_entry(disclosed.assignment.method).access
        if access != "weights":
            # An opening holds neither the owner's architecture nor source images, so a folder cannot be asked.
            raise InvalidInput(
                f"{opening}: is read from {access}, not from a folder; use verify(function, Opening.load(path, pool)) in Python"
            )
        return disclosed
    assert key is not None
    return open_secret(lambda secret: WatermarkKey.load(key, secret), passphrase)
