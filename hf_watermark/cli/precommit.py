"""`hf-watermark precommit`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..serialization import InvalidInput, write_bytes_atomic
from .passphrase import PassphraseFd, PassphraseFile, read_passphrase, unwarned
from .secrets import KeyOption, load_key


if TYPE_CHECKING:
    from ..keys import WatermarkKey
    from ..publishing.beacon import Beacon

EXAMPLE = (
    "Example:\n\nhf-watermark precommit --key keys/my-model --repo-id me/my-model "
    "--timestamp https://timestamp.example/tsr --beacon timestamp"
)


def precommit(
    key: KeyOption,
    repo_id: Annotated[
        str | None,
        typer.Option(
            "--repo-id",
            metavar="OWNER/NAME",
            help="Publish the precommit in this repository; NAME alone is one of your own account.",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Also write the public files into this folder.")
    ] = None,
    timestamp: Annotated[
        list[str] | None,
        typer.Option(
            "--timestamp", metavar="URL", help="Have it dated by this RFC 3161 authority; give two independent ones."
        ),
    ] = None,
    beacon: Annotated[
        str | None,
        typer.Option(
            "--beacon",
            metavar="KIND",
            help="Bind the key to a public value that did not exist before: 'timestamp', 'drand', or HEX:SOURCE. Then level B is enough.",
        ),
    ] = None,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """
    Commit to a key in public, before training: make the trainer, save its key, run this, train with the key.

    With --beacon the key file is written again; a model that was trained before is then not this key's any more.
    """
    if repo_id is None and output is None and not timestamp:
        raise InvalidInput("nothing to do: give --repo-id, --output or --timestamp")
    if beacon == "timestamp" and not timestamp:
        raise InvalidInput("--beacon timestamp is made from a timestamp; give --timestamp URL as well")
    given = None if beacon in (None, "timestamp", "drand") else _given_beacon(str(beacon))
    passphrase = read_passphrase(passphrase_fd, passphrase_file)

    from ..keys import NO_BEACON
    from ..publishing.precommit import PRECOMMIT, Precommit
    from ..publishing.timestamp import SUFFIX, request_token

    loaded, used = load_key(key, passphrase)
    if beacon is not None and loaded.beacon != NO_BEACON:
        raise InvalidInput(
            f"{key} is bound to a beacon already ({loaded.beacon_source}); make a new key for another one"
        )
    document = Precommit.of(loaded)
    tokens = {
        f"precommit.{place}{SUFFIX}": request_token(url, document.stamped) for place, url in enumerate(timestamp or [])
    }
    for name, raw in tokens.items():
        write_bytes_atomic(key / name, raw)
    files = {PRECOMMIT: document.to_bytes(), **{f"watermark/{name}": raw for name, raw in tokens.items()}}
    if output is not None:
        for name, raw in files.items():
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomic(output / name, raw)
    if repo_id is not None:
        typer.echo(f"published: {_publish(repo_id, files, private)}")
    typer.echo(f"precommit: {document.precommit}")
    if beacon is not None:
        # After publishing: a value that was known before would prove nothing.
        value = given or _beacon(beacon, list(tokens.values()))
        _save(loaded, key, used, value)
        typer.echo(f"beacon:    {value.value.hex()} ({value.source})")


def _publish(repo_id: str, files: dict[str, bytes], private: bool) -> str:
    from ..publishing.publish import commit
    from ..suspects.errors import hub_errors
    from ..suspects.source import RepoSource, hub_api

    with hub_errors(repo_id):
        repo_id = hub_api().create_repo(repo_id, private=private or None, exist_ok=True).repo_id
    remote = RepoSource(repo_id)
    if "watermark/statement.json" in remote:
        raise InvalidInput(
            f"{repo_id} holds a statement already; a precommit comes before training, in a new repository"
        )
    return commit(remote, files, "Publish precommit", keep=True).commit_url


def _given_beacon(text: str) -> "Beacon":
    """A value that the owner looked up; refused before anything is published."""
    from ..publishing.beacon import Beacon

    value, separator, source = text.partition(":")
    try:
        raw = bytes.fromhex(value)
    except ValueError:
        raw = b""
    if len(raw) != 32 or not separator or not source:
        raise InvalidInput(
            f"--beacon {text[:80]!r}: write 'timestamp', 'drand', or 64 hexadecimal digits, a colon and where they are from"
        )
    return Beacon(raw, source)


def _beacon(kind: str, tokens: list[bytes]) -> "Beacon":
    from ..publishing.beacon import DELAY, Beacon, round_after, wait_for_round
    from ..publishing.timestamp import token_beacon

    if kind == "timestamp":
        return Beacon(token_beacon(tokens[0]), "rfc3161")
    return wait_for_round(round_after(datetime.now(UTC) + DELAY))


def _save(loaded: "WatermarkKey", folder: Path, passphrase: str | None, beacon: "Beacon") -> None:
    with unwarned():  # it was stored so before; the user knows
        loaded.bind_beacon(beacon.value, beacon.source).save(folder, passphrase, overwrite=True)
