"""`hf-watermark publish`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..serialization import InvalidInput
from .errors import FOUND, NOT_FOUND
from .loading import silence_loading
from .passphrase import PassphraseFd, PassphraseFile, read_passphrase
from .progress import begin
from .secrets import KeyOption, OwnerFd, OwnerFile, OwnerOption, load_key, load_owner


if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..evidence import Evidence
    from ..publishing import Fidelity, Preview

EXAMPLE = "Example:\n\nhf-watermark publish my-model --key keys/my-model --repo-id me/my-model --private"
ROWS_BYTES = 4 * 2**20


def publish(
    model: Annotated[Path, typer.Argument(help="Folder of your own marked model.")],
    key: KeyOption,
    repo_id: Annotated[
        str,
        typer.Option(
            "--repo-id",
            metavar="OWNER/NAME",
            help="Repository; made if it is not there. NAME alone is one of your own account (not with --dry-run).",
        ),
    ],
    owner: OwnerOption = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch; main by default.")] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="FILE",
            help="Publish this file of the folder too, though it is of no known kind; may be repeated. Archives and pickles never.",
        ),
    ] = None,
    license: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="License for the card, such as apache-2.0.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show files and card, and stop: nothing is written and nobody is contacted."),
    ] = False,
    message: Annotated[str, typer.Option("--message", help="Commit message.")] = "Publish marked model",
    derived_from: Annotated[
        list[str] | None,
        typer.Option(
            "--derived-from",
            metavar="SOURCE",
            help="A marked model that this one was made from, its earlier version or somebody else's: the statement names its key. May be repeated.",
        ),
    ] = None,
    timestamp: Annotated[
        list[str] | None,
        typer.Option(
            "--timestamp", metavar="URL", help="Have the statement dated by this RFC 3161 authority; may be repeated."
        ),
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Data set of --accuracy.")] = None,
    accuracy: Annotated[
        float | None, typer.Option("--accuracy", min=0, max=1, help="Of the marked model, as a share.")
    ] = None,
    twin_accuracy: Annotated[
        float | None, typer.Option("--twin-accuracy", min=0, max=1, help="Of the unmarked twin, as a share.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Over how many seeds both are means.")] = 1,
    survival: Annotated[
        Path | None,
        typer.Option(
            "--survival", metavar="FILE", help="Survival table: rows as JSON, or a quickstart's evidence.json."
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", metavar="FILE", help="Output of hf-watermark certify --json.")
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(
            "--original", metavar="DIR", help="Unmarked original that you keep; only its digest is published."
        ),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option("--sign", metavar="FILE.pem", help="P-256 key for an OpenSSF signature of the files."),
    ] = None,
    allow_weak: Annotated[
        bool,
        typer.Option(
            "--allow-weak",
            help="Publish a mark that is found but weaker than its config asked for, or of which one method is not in.",
        ),
    ] = False,
    publish_pool: Annotated[
        bool,
        typer.Option(
            "--publish-pool", help="Publish the source images of sub-key 0; they come from your training data."
        ),
    ] = False,
    passphrase_fd: PassphraseFd = None,
    passphrase_file: PassphraseFile = None,
    owner_passphrase_fd: OwnerFd = None,
    owner_passphrase_file: OwnerFile = None,
) -> None:
    """
    Upload your marked model with a signed statement and a card, in one commit. The mark is read from the files that are uploaded, and
    every file is searched for secrets first. Weights, configs, card, license, lists of labels and images go; other files must be named.

    Exit status: 0 published, 1 the mark was not found in the folder, 2 bad usage or refused.
    """
    begin(f"Reading {model}")
    secret, owner_secret = (
        read_passphrase(passphrase_fd, passphrase_file),
        read_passphrase(owner_passphrase_fd, owner_passphrase_file),
    )

    from ..keys import burnt_log
    from ..publishing import Extras, preview
    from ..publishing import publish as upload
    from ..publishing.origins import origin_in
    from ..publishing.timestamp import SUFFIX
    from ..verifying import verify

    silence_loading()
    loaded, _ = load_key(key, secret)
    identity = load_owner(owner, owner_secret)
    extras = Extras(
        fidelity=_fidelity(dataset, accuracy, twin_accuracy, seeds),
        survival=_rows(survival) if survival else (),
        certificates=[_document(certificate)] if certificate else (),
        timestamps=timestamp or (),
        precommit_tokens={path.name: path.read_bytes() for path in sorted(key.glob(f"precommit*{SUFFIX}"))},
        original=original,
        burnt=burnt_log(key),
        signing_key=_signing_key(sign) if sign else None,
        publish_pool=publish_pool,
        allow_weak=allow_weak,
        derived_from=[origin_in(place) for place in derived_from or ()],
    )
    # The owner binds the beacon himself, so it is taken at its word here; every reader looks it up.
    bound = loaded.beacon if any(loaded.beacon) else None

    def read_mark(folder: Path) -> "Evidence":
        evidence = verify(folder, loaded, beacon=bound)
        if not evidence.found:
            typer.echo(f"not published: {evidence.verdict}: {evidence.reason}", err=True)
            raise typer.Exit(NOT_FOUND)
        return evidence

    named = include or []
    if dry_run:
        _show(preview(model, repo_id, loaded, identity, read_mark, extras, named, license), repo_id, bool(timestamp))
        raise typer.Exit(FOUND)
    result = upload(
        model, repo_id, loaded, identity, read_mark, extras, private or None, None, revision, message, named, license
    )
    typer.echo(f"published: {result.url}")
    _show_notes(result.skipped, result.warnings)
    raise typer.Exit(FOUND)


def _show(result: "Preview", repo_id: str, dates: bool) -> None:
    for name, size in result.files.items():
        typer.echo(f"would publish: {name} ({size:,} bytes)")
    _show_notes(result.skipped, result.warnings)
    typer.echo(f"nothing was published; {repo_id} was not asked, so that a card there is not seen")
    if dates:
        typer.echo("no authority was asked for a date either")
    typer.echo(f"\n{result.card or 'no card'}")


def _show_notes(skipped: "Mapping[str, str]", warnings: list[str]) -> None:
    for name, reason in skipped.items():
        typer.echo(f"left out:  {name} ({reason})")
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)


def _fidelity(dataset: str | None, accuracy: float | None, twin: float | None, seeds: int) -> "Fidelity | None":
    if accuracy is None and twin is None and dataset is None:
        return None
    if accuracy is None or dataset is None:
        raise InvalidInput("give --accuracy and --dataset together; --twin-accuracy and --seeds go with them")

    from ..publishing import Fidelity

    return Fidelity.of(dataset, accuracy, twin, seeds=seeds)


def _document(path: Path) -> dict[str, Any]:
    from ..serialization import read_json

    return read_json(path, max_bytes=ROWS_BYTES, allow_floats=True)


def _rows(path: Path) -> list[dict[str, Any]]:
    document = _document(path)
    rows = document.get("rows", document.get("attacks"))
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"attack", "verdict"} <= row.keys() for row in rows
    ):
        raise InvalidInput(
            f'{path}: holds no survival table; expected {{"rows": [{{"attack", "accuracy", "log2_p", "verdict"}}]}}'
        )
    return rows


def _signing_key(path: Path) -> Any:
    from ..publishing.signing import read_signing_key

    return read_signing_key(path)
