"""`hf-watermark owner create | show`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..serialization import InvalidInput
from .passphrase import PassphraseFd, PassphraseFile, new_passphrase, open_secret, read_passphrase, unwarned


if TYPE_CHECKING:
    from ..keys import Owner

CREATE_EXAMPLE = "Example:\n\nhf-watermark owner create --path me/owner.json"
SHOW_EXAMPLE = "Example:\n\nhf-watermark owner show --path me/owner.json"

PathOption = Annotated[
    Path | None,
    typer.Option("--path", metavar="FILE", help="Owner file; ~/.config/hf_watermark/owner.json by default."),
]


def default_path() -> Path:
    """`owner.json` in the user's configuration folder (XDG base directory specification)."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "hf_watermark" / "owner.json"


def owner_file(path: Path | None, option: str) -> Path:
    """
    The owner file that a command shall read.

    Raises:
        [`~serialization.InvalidInput`]: when there is none; says how to name or make one.
    """
    chosen = path or default_path()
    if (chosen / "owner.json").is_file():
        raise InvalidInput(f"{chosen}: is a folder; give {option} {chosen / 'owner.json'}")
    if not os.path.lexists(chosen):
        raise InvalidInput(
            f"{chosen}: no such owner file; give {option} FILE, or make one with `hf-watermark owner create`"
        )
    return chosen


def create(
    path: PathOption = None,
    no_passphrase: Annotated[
        bool, typer.Option("--no-passphrase", help="Leave the file unencrypted, protected by its mode 0600 alone.")
    ] = False,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make an owner identity (Ed25519) and store its private key. An existing file is never overwritten."""
    path = path or default_path()
    # Before anybody types a passphrase twice; `save` makes sure again.
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists and is left as it is; choose another --path")
    passphrase = read_passphrase(passphrase_fd, passphrase_file)
    if no_passphrase and passphrase is not None:
        raise InvalidInput("--no-passphrase contradicts --passphrase-fd and --passphrase-file; give one of them")
    if passphrase is None and not no_passphrase:
        passphrase = new_passphrase()

    from ..keys import Owner

    owner = Owner.create()
    with unwarned():  # the user asked for it, and the line below says what it means
        owner.save(path, passphrase)
    typer.echo(f"wrote {path}" + (" (not encrypted: whoever reads this file is the owner)" if no_passphrase else ""))
    _describe(owner)


def show(path: PathOption = None, passphrase_fd: PassphraseFd = None, passphrase_file: PassphraseFile = None) -> None:
    """Print the fingerprint and the public key of an owner identity."""
    path = owner_file(path, "--path")
    passphrase = read_passphrase(passphrase_fd, passphrase_file)

    from ..keys import Owner

    _describe(open_secret(lambda secret: Owner.load(path, secret), passphrase))


def _describe(owner: "Owner") -> None:
    typer.echo(f"fingerprint: {owner.fingerprint}")
    typer.echo(f"public key:  {owner.public_key.hex()}")
