"""Opening the two secret files that publishing needs: the key folder and the owner's identity."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..serialization.kinds import KEY_FILE
from .owner import owner_file
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
    found = owner_file(path, "--owner")

    from ..keys import Owner

    return open_secret(lambda secret: Owner.load(found, secret), passphrase)


def warn_of_keys(folders: Iterable[object], key: Path | None) -> None:
    """Tells on standard error about secrets that lie in a model folder, or a key folder that lies in one: the next upload publishes them."""
    from ..keys import key_inside, model_around

    for folder in folders:
        found = key_inside(str(folder)) if folder is not None else None
        if found is not None:
            typer.echo(f"warning: {found} is a secret inside the model folder {folder}; move it out", err=True)
    model = None if key is None or not (key / KEY_FILE).exists() else model_around(key)
    if model is not None:
        typer.echo(f"warning: the key {key} lies inside the model folder {model.parent}; move it out", err=True)
