"""`hf-watermark methods`."""

import json as json_format
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from .options import JsonOption


EXAMPLE = "Example:\n\nhf-watermark methods --json"


def methods(json: JsonOption = False) -> None:
    """List the marking methods and what a verifier needs to see of a suspect."""
    from ..mapping import METHODS

    rows = [{"name": name, **described(entry)} for name, entry in METHODS.items()]
    if json:
        typer.echo(json_format.dumps(rows, indent=2))
        return
    table = Table("method", "access", "summary")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


def described(entry: Any) -> dict[str, str]:
    """A method from outside that is broken is listed with what is wrong; the others are as they are."""
    from ..mapping import BrokenMethod

    try:
        return {"access": entry.facts.access, "summary": entry.facts.summary}
    except BrokenMethod as error:
        return {"access": "", "summary": str(error)}
