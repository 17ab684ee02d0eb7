"""Shares of a secret on disk or on the terminal, for `owner backup` and `key export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..serialization import InvalidInput, make_private_dir, read_private_bytes, write_bytes_atomic
from ..serialization.files import refuse_existing


SharesOption = Annotated[int, typer.Option("--shares", metavar="N", help="How many shares to make, 2 to 16.")]
ThresholdOption = Annotated[
    int, typer.Option("--threshold", metavar="K", help="How many of them restore the secret, 2 or more.")
]
ShareFolder = Annotated[
    Path | None,
    typer.Option(
        "--share-folder",
        metavar="DIR",
        help="New folder for the shares, one file each (mode 0600). Give them away and delete it.",
    ),
]
PrintOption = Annotated[
    bool, typer.Option("--print", help="Print the shares once instead, to be written down; nothing is stored.")
]


def refuse_places(folder: Path | None, printed: bool) -> None:
    """Before anybody types a passphrase: the shares go to one place, which is new and no model folder."""
    if (folder is None) != printed:
        raise InvalidInput("give either --share-folder DIR or --print: where shall the shares go?")
    if folder is not None:
        from ..keys import refuse_model_folder

        refuse_existing(folder)
        refuse_model_folder(folder)


def give_out(shares: Sequence[str], threshold: int, what: str, folder: Path | None) -> None:
    """Writes the words of each share into a file of its own, or prints them."""
    from ..keys.shares import share_text

    texts = [share_text(words, number, len(shares), threshold, what) for number, words in enumerate(shares, 1)]
    if folder is None:
        typer.echo("\n".join(texts))
        return
    make_private_dir(folder)
    for number, text in enumerate(texts, 1):
        path = folder / f"share-{number}-of-{len(shares)}.txt"
        write_bytes_atomic(path, text.encode(), mode=0o600, overwrite=False)
        typer.echo(f"wrote {path}")
    typer.echo(
        f"any {threshold} of these {len(shares)} files restore {what}: give each to somebody else, and delete {folder}"
    )


def read_shares(paths: Sequence[Path]) -> list[str]:
    """
    The words in files that nobody else can read.

    Raises:
        [`~serialization.InvalidInput`]: when a file is missing, readable by others, or no text.
    """
    from ..keys.shares import SHARE_BYTES

    texts = []
    for path in paths:
        try:
            texts.append(read_private_bytes(path, SHARE_BYTES).decode("ascii"))
        except UnicodeDecodeError:
            raise InvalidInput(f"{path}: holds no share: its words are plain ASCII text") from None
    return texts
