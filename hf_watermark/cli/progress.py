"""The first sign of life of a slow command."""

import typer

from .options import printable


def begin(doing: str) -> None:
    """
    One line on stderr before anything slow, even before torch is imported, so that nobody sits in front of an empty screen. It is printed
    whether or not somebody looks: a log then says what was begun. stdout stays what the command was asked for.
    """
    typer.echo(f"{printable(doing)} ...", err=True)
