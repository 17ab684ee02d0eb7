"""`hf-watermark revoke`."""

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..serialization import write_bytes_atomic
from .options import read_date, refuse_output
from .passphrase import read_passphrase
from .secrets import OwnerFd, OwnerFile, OwnerOption, load_owner


if TYPE_CHECKING:
    from ..publishing.revocation import Revocations, SignedRevocation
    from ..suspects.source import Source

EXAMPLE = (
    "Example:\n\nhf-watermark revoke me/my-model --owner me/owner.json --reason leaked --since 2026-11-22T12:00:00Z"
)


class Reason(StrEnum):
    LEAKED = "leaked"
    SUPERSEDED = "superseded"


def revoke(
    source: Annotated[
        str,
        typer.Argument(
            help="Your model with the key to revoke: a folder, or OWNER/NAME[@REVISION]. Of a key that was replaced, an earlier revision."
        ),
    ],
    reason: Annotated[
        Reason,
        typer.Option(
            "--reason",
            help="leaked: others may put the mark into models, so only older ones count as evidence. superseded: another key took its place.",
        ),
    ],
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="DATE", help="From when on, as 2026-11-22T12:00:00Z; now by default."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Write it into this new file only, to be handed to somebody (--revocation).",
        ),
    ] = None,
    owner: OwnerOption = None,
    owner_passphrase_fd: OwnerFd = None,
    owner_passphrase_file: OwnerFile = None,
) -> None:
    """
    Sign that you make no more claims with a key: of statements from then on, and of a leaked key against models from then on.

    It goes into watermark/revocation.json of the folder, or into the repository. The key itself is not needed, and it cannot be taken back.
    """
    secret = read_passphrase(owner_passphrase_fd, owner_passphrase_file)
    if output is not None:
        refuse_output(output)
    moment = read_date(since, "--since") or datetime.now(UTC)

    from ..publishing.origins import key_in
    from ..publishing.revocation import REVOCATION, Revocations
    from ..publishing.revocation import revoke as sign
    from ..suspects.source import FolderSource, Source

    place = Source.open(source)
    precommit, signed = key_in(place)
    entry = sign(load_owner(owner, secret), precommit, reason, moment)
    if signed is None or not signed.timestamps:
        typer.echo(
            "warning: no authority dated the statement of this key, so it cannot be shown to be older: no claim with this key will count any more",
            err=True,
        )
    elif signed.statement.created >= entry.revocation.since:
        typer.echo(
            f"warning: the statement is from {signed.statement.created}, not before {entry.revocation.since}: no claim by it will count any more",
            err=True,
        )
    if output is not None:
        write_bytes_atomic(output, Revocations().with_([entry]).to_bytes(), overwrite=False)
        typer.echo(f"wrote {output}; {entry.revocation}")
    elif isinstance(place, FolderSource):
        longer = _added(place, entry)
        write_bytes_atomic(place.folder / REVOCATION, longer.to_bytes())
        typer.echo(f"wrote {place.folder / REVOCATION}; {entry.revocation}")
    else:
        typer.echo(f"published: {_publish(place.latest(), entry)}; {entry.revocation}")


def _added(place: "Source", entry: "SignedRevocation") -> "Revocations":
    """What the place holds already, and the new one."""
    from ..publishing.revocation import REVOCATION, Revocations

    raw = place.read(REVOCATION)
    return (Revocations() if raw is None else Revocations.parse(raw)).with_([entry])


def _publish(place: "Source", entry: "SignedRevocation") -> str:
    from ..publishing.publish import commit
    from ..publishing.revocation import REVOCATION
    from ..suspects.source import RepoSource

    assert isinstance(place, RepoSource)  # what is no folder is a repository
    files = {REVOCATION: _added(place, entry).to_bytes()}
    return str(commit(place, files, "Revoke a key", keep=True).commit_url)
