"""The one place where an error becomes a line on stderr and an exit status."""

from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from ..evidence import Verdict
from ..serialization.confined import EXPECTED, one_line


FOUND, NOT_FOUND, BAD_INPUT, INCONCLUSIVE, INVALID = 0, 1, 2, 3, 4
STATUSES = {
    Verdict.FOUND: FOUND,
    Verdict.NOT_FOUND: NOT_FOUND,
    Verdict.INCONCLUSIVE: INCONCLUSIVE,
    Verdict.INVALID: INVALID,
}
# Not 1, which says "not found": neither a bug nor Ctrl-D may read as a verdict.
BUG, ABORTED = 70, 130


def leave(verdict: str) -> NoReturn:
    """Ends a command with the exit status of its verdict."""
    raise typer.Exit(STATUSES[Verdict(verdict)])


class OneLineErrors(TyperGroup):
    """Command group that reports what a user can put right as one red line and exits with status 2; bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EXPECTED as error:
            Console(stderr=True).print(Text(f"Error: {one_line(error)}", style="red"), soft_wrap=True)
            raise typer.Exit(BAD_INPUT) from None
        except (typer.Abort, EOFError):
            raise typer.Exit(ABORTED) from None
