"""`hf-watermark key export | import`."""

from pathlib import Path
from typing import Annotated

import typer

from ..serialization import InvalidInput
from .options import refuse_output
from .passphrase import PassphraseFd, PassphraseFile, can_ask, new_passphrase, open_secret, read_passphrase
from .secrets import KeyOption
from .shares import PrintOption, ShareFolder, give_out, read_shares, refuse_places


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
    shares: Annotated[
        int | None,
        typer.Option(
            "--shares",
            metavar="N",
            help="Instead of a passphrase: split a random one into so many shares, 2 to 16 (extra `backup`).",
        ),
    ] = None,
    threshold: Annotated[
        int, typer.Option("--threshold", metavar="K", help="With --shares: how many of them open the backup.")
    ] = 2,
    folder: ShareFolder = None,
    printed: PrintOption = False,
) -> None:
    """
    Write a key folder into one encrypted file, to be kept somewhere else: a lost key proves nothing.

    Your identity is another secret file; back it up with `hf-watermark owner backup`, or copy owner.json.
    """
    refuse_output(output)
    secret = read_passphrase(passphrase_fd, passphrase_file)
    backup = read_passphrase(backup_passphrase_fd, backup_passphrase_file)

    from ..keys import entropy, export_key

    words: list[str] = []
    if shares is not None:
        if backup is not None:
            raise InvalidInput("--shares makes a passphrase of its own; leave out --backup-passphrase-file and -fd")
        refuse_places(folder, printed)

        from ..keys.shares import BACKUP, split_secret

        drawn = entropy.draw(32)
        words, backup = split_secret(drawn, BACKUP, shares, threshold), drawn.hex()
    chosen = backup or new_passphrase()
    open_secret(lambda used: export_key(key, output, chosen, used), secret)
    typer.echo(f"wrote {output}: whoever has this file and its {'shares' if words else 'passphrase'} can use the key")
    if words:
        give_out(words, threshold, f"what opens {output.name}", folder)


def restore(
    backup: Annotated[Path, typer.Argument(help="What `hf-watermark key export` wrote.")],
    key: KeyOption,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
    backup_passphrase_fd: BackupFd = None,
    backup_passphrase_file: BackupFile = None,
    share: Annotated[
        list[Path] | None,
        typer.Option("--share", metavar="FILE", help="A share of what opens the backup; repeat it for each."),
    ] = None,
) -> None:
    """
    Make a key folder from its backup. The new folder is encrypted with --passphrase-file or --passphrase-fd, else as the backup is.
    """
    fresh = read_passphrase(passphrase_fd, passphrase_file)
    secret = read_passphrase(backup_passphrase_fd, backup_passphrase_file)

    from ..keys import WrongPassphrase, import_key

    if share:
        from ..keys.shares import BACKUP, join_shares

        secret = join_shares(read_shares(share), BACKUP).hex()
        # Nobody knows the old one by heart.
        fresh = fresh or new_passphrase()
    if secret is None:
        if not can_ask():
            raise WrongPassphrase(f"{backup}: give --backup-passphrase-file FILE or --backup-passphrase-fd N")
        secret = str(typer.prompt("Passphrase of the backup", hide_input=True, err=True))
    import_key(backup, key, secret, fresh or secret)
    typer.echo(f"wrote {key}: encrypted, and as it was when it was exported")
