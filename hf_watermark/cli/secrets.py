"""Opening the two secret files that publishing needs: the key folder and the owner's identity."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .owner import default_path
from .passphrase import open_secret


if TYPE_CHECKING:
    from ..keys import Owner, WatermarkKey

KeyOption = Annotated[Path, typer.Option("--key", metavar="DIR", help="The owner's key folder.")]
OwnerOption = Annotated[
    Path | None,
    typer.Option("--owner", metavar="FILE", help="Owner file; ~/.config/hf_watermark/owner.json by default."),
]
OwnerFd = Annotated[
    int | None,
    typer.Option(
        "--owner-passphrase-fd", metavar="N", min=0, help="Read the owner file's passphrase from this descriptor."
    ),
]
OwnerFile = Annotated[
    Path | None,
    typer.Option(
        "--owner-passphrase-file", metavar="FILE", help="Read the owner file's passphrase from this private file."
    ),
]


def load_key(folder: Path, passphrase: str | None) -> "tuple[WatermarkKey, str | None]":
    """The key, and the passphrase that opened it: whoever writes the key again must encrypt it again."""
    from ..keys import WatermarkKey

    used: list[str | None] = []

    def load(secret: str | None) -> "WatermarkKey":
        key = WatermarkKey.load(folder, secret)
        used.append(secret)
        return key

    return open_secret(load, passphrase), used[-1]


def load_owner(path: Path | None, passphrase: str | None) -> "Owner":
    from ..keys import Owner

    return open_secret(lambda secret: Owner.load(path or default_path(), secret), passphrase)
