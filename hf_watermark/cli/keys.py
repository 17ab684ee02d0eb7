"""`hf-watermark key export | import`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import refuse_output
from .passphrase import PassphraseFd, PassphraseFile, can_ask, new_passphrase, open_secret, read_passphrase
from .secrets import KeyOption


EXPORT_EXAMPLE = "Example:\n\nhf-watermark key export --key keys/my-model --output /media/stick/my-model.backup.json"
RESTORE_EXAMPLE = "Example:\n\nhf-watermark key import /media/stick/my-model.backup.json --key keys/my-model"

BackupFd = Annotated[
    int | None,
    typer.Option("--backup-passphrase-fd", metavar="N", min=0, help="Read the backup's passphrase from here."),
]
BackupFile = Annotated[
    Path | None,
    typer.Option(
        "--backup-passphrase-file", metavar="FILE", help="Read the backup's passphrase from this private file."
    ),
]


def export(
    key: KeyOption,
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="New file for the backup.")],
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
    backup_passphrase_fd: BackupFd = None,
    backup_passphrase_file: BackupFile = None,
) -> None:
    """
    Write a key folder into one encrypted file, to be kept somewhere else: a lost key proves nothing.

    Your identity is another secret file; copy owner.json as well, which is encrypted by its own passphrase.
    """
    refuse_output(output)
    secret = read_passphrase(passphrase_fd, passphrase_file)
    backup = read_passphrase(backup_passphrase_fd, backup_passphrase_file)

    from ..keys import export_key

    backup = backup or new_passphrase()
    open_secret(lambda used: export_key(key, output, backup, used), secret)
    typer.echo(f"wrote {output}: whoever has this file and its passphrase can use the key")


def restore(
    backup: Annotated[Path, typer.Argument(help="What `hf-watermark key export` wrote.")],
    key: KeyOption,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
    backup_passphrase_fd: BackupFd = None,
    backup_passphrase_file: BackupFile = None,
) -> None:
    """
    Make a key folder from its backup. The new folder is encrypted with --passphrase-file or --passphrase-fd, else as the backup is.
    """
    fresh = read_passphrase(passphrase_fd, passphrase_file)
    secret = read_passphrase(backup_passphrase_fd, backup_passphrase_file)

    from ..keys import WrongPassphrase, import_key

    if secret is None:
        if not can_ask():
            raise WrongPassphrase(f"{backup}: give --backup-passphrase-file FILE or --backup-passphrase-fd N")
        secret = str(typer.prompt("Passphrase of the backup", hide_input=True, err=True))
    import_key(backup, key, secret, fresh or secret)
    typer.echo(f"wrote {key}: encrypted, and as it was when it was exported")
