"""How a passphrase reaches a command: typed, or read from a file or an open descriptor. Never from argv or the environment."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from ..serialization import InvalidInput, read_private_bytes


MAX_BYTES = 4096
Secret = TypeVar("Secret")

PassphraseFd = Annotated[
    int | None,
    typer.Option("--passphrase-fd", metavar="N", min=0, help="Read the passphrase (first line) from this descriptor."),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="Read the passphrase (first line) from this private file."),
]


def read_passphrase(fd: int | None, file: Path | None) -> str | None:
    """
    The passphrase that the options point to; `None` without them.

    Raises:
        [`~serialization.InvalidInput`]: when both are given, or nothing usable is there.
    """
    if fd is not None and file is not None:
        raise InvalidInput("give only one of --passphrase-fd and --passphrase-file")
    if fd is not None:
        with os.fdopen(fd, "rb", closefd=False) as stream:
            return _first_line(stream.read(MAX_BYTES), f"descriptor {fd}")
    if file is not None:
        return _first_line(read_private_bytes(file, MAX_BYTES), str(file))
    return None


@contextmanager
def unwarned() -> Iterator[None]:
    """Without the library's warning of a secret that is not encrypted: it names an argument of Python, a command names its options."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*stored without a passphrase")
        yield


def can_ask() -> bool:
    """Whether somebody can type: standard input is a terminal."""
    return sys.stdin.isatty()


def open_secret(load: Callable[[str | None], Secret], passphrase: str | None) -> Secret:
    """Calls `load` with the passphrase; asks for one when the file turns out to be encrypted and somebody can type it."""
    from ..keys import WrongPassphrase

    if passphrase is not None:
        return load(passphrase)
    try:
        return load(None)
    except WrongPassphrase as error:
        if not can_ask():
            raise WrongPassphrase(f"{error} with --passphrase-file FILE or --passphrase-fd N") from None
    # On stderr, so that `--json > evidence.json` still shows the question.
    return load(typer.prompt("Passphrase", hide_input=True, err=True))


def new_passphrase() -> str:
    """Asks for a passphrase twice."""
    if not can_ask():
        raise InvalidInput(
            "nobody can type a passphrase here; give --passphrase-file FILE, --passphrase-fd N or --no-passphrase"
        )
    return typer.prompt(
        "New passphrase (12 characters or more)", hide_input=True, confirmation_prompt="Once more", err=True
    )


def _first_line(raw: bytes, source: str) -> str:
    line = raw.split(b"\n", 1)[0].removesuffix(b"\r")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        # The original message quotes bytes of the passphrase.
        raise InvalidInput(f"{source}: the passphrase is not UTF-8 text") from None
    if not text:
        raise InvalidInput(f"{source}: holds no passphrase in its first line")
    return text
