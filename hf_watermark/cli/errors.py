"""The one place where an error becomes a line on stderr and an exit status."""

from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from safetensors import SafetensorError
from typer.core import TyperGroup


FOUND, NOT_FOUND, BAD_INPUT, INCONCLUSIVE = 0, 1, 2, 3
# Not 1, which says "not found": neither a bug nor Ctrl-D may read as a verdict.
BUG, ABORTED = 70, 130

# `InvalidInput` with all its subclasses is a `ValueError`; training that diverges raises `FloatingPointError`, and a missing optional
# library `ImportError`.
EXPECTED = (ValueError, OSError, SafetensorError, FloatingPointError, ImportError)


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


def one_line(error: BaseException) -> str:
    """The message without line breaks and without control characters, which a hostile file could send to the terminal."""
    words = " ".join((str(error) or type(error).__name__).split())
    return "".join(letter if letter.isprintable() else "?" for letter in words)
