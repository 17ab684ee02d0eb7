"""`hf-watermark owner create | show | backup | restore`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..serialization import InvalidInput
from .passphrase import PassphraseFd, PassphraseFile, new_passphrase, open_secret, read_passphrase, unwarned
from .shares import PrintOption, ShareFolder, SharesOption, ThresholdOption, give_out, read_shares, refuse_places


if TYPE_CHECKING:
    from ..keys import Owner

CREATE_EXAMPLE = "Example:\n\nhf-watermark owner create --path me/owner.json"
SHOW_EXAMPLE = "Example:\n\nhf-watermark owner show --path me/owner.json"
BACKUP_EXAMPLE = (
    "Example:\n\nhf-watermark owner backup --path me/owner.json --shares 5 --threshold 3 --share-folder shares"
)
RESTORE_EXAMPLE = (
    "Example:\n\nhf-watermark owner restore share-1-of-5.txt share-2-of-5.txt share-4-of-5.txt --path me/owner.json"
)

PathOption = Annotated[
    Path | None,
    typer.Option("--path", metavar="FILE", help="Owner file; ~/.config/hf_watermark/owner.json by default."),
]
NoPassphrase = Annotated[
    bool, typer.Option("--no-passphrase", help="Leave the file unencrypted, protected by its mode 0600 alone.")
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
    no_passphrase: NoPassphrase = False,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make an owner identity (Ed25519) and store its private key. An existing file is never overwritten."""
    path = path or default_path()
    passphrase = _passphrase_for(path, no_passphrase, read_passphrase(passphrase_fd, passphrase_file))

    from ..keys import Owner

    _write(Owner.create(), path, passphrase)


def backup(
    shares: SharesOption,
    threshold: ThresholdOption,
    path: PathOption = None,
    folder: ShareFolder = None,
    printed: PrintOption = False,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """
    Split your identity into shares for several people or places: any --threshold of them restore it, fewer are of no use.

    Nothing else is needed to restore it, and no passphrase. Needs the extra `backup`.
    """
    refuse_places(folder, printed)
    path = owner_file(path, "--path")
    passphrase = read_passphrase(passphrase_fd, passphrase_file)

    from ..keys import Owner
    from ..keys.shares import split_owner

    owner = open_secret(lambda secret: Owner.load(path, secret), passphrase)
    give_out(split_owner(owner, shares, threshold), threshold, f"the owner {owner.fingerprint}", folder)


def restore(
    shares: Annotated[
        list[Path], typer.Argument(help="Files of shares, readable by you alone; the words alone will do.")
    ],
    path: PathOption = None,
    no_passphrase: NoPassphrase = False,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make an owner file from shares. Compare the fingerprint that is printed with your own. An existing file is never overwritten."""
    path = path or default_path()

    from ..keys.shares import join_owner

    owner = join_owner(read_shares(shares))
    passphrase = _passphrase_for(path, no_passphrase, read_passphrase(passphrase_fd, passphrase_file))
    _write(owner, path, passphrase)


def show(path: PathOption = None, passphrase_fd: PassphraseFd = None, passphrase_file: PassphraseFile = None) -> None:
    """Print the fingerprint and the public key of an owner identity."""
    path = owner_file(path, "--path")
    passphrase = read_passphrase(passphrase_fd, passphrase_file)

    from ..keys import Owner

    _describe(open_secret(lambda secret: Owner.load(path, secret), passphrase))


def _passphrase_for(path: Path, none: bool, given: str | None) -> str | None:
    """What a new owner file is encrypted with; asked for where it was not given."""
    # Before anybody types a passphrase twice; `save` makes sure again.
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists and is left as it is; choose another --path")
    if none and given is not None:
        raise InvalidInput("--no-passphrase contradicts --passphrase-fd and --passphrase-file; give one of them")
    return given if given is not None or none else new_passphrase()


def _write(owner: "Owner", path: Path, passphrase: str | None) -> None:
    with unwarned():  # the user asked for it, and the line below says what it means
        owner.save(path, passphrase)
    typer.echo(f"wrote {path}" + ("" if passphrase else " (not encrypted: whoever reads this file is the owner)"))
    _describe(owner)


def _describe(owner: "Owner") -> None:
    typer.echo(f"fingerprint: {owner.fingerprint}")
    typer.echo(f"public key:  {owner.public_key.hex()}")
