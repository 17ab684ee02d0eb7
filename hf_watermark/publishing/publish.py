"""One atomic commit that publishes a marked model with everything by which others can check it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from ..evidence import Evidence
from ..keys import Owner, WatermarkKey
from ..serialization import InvalidInput, write_bytes_atomic
from ..suspects.errors import hub_errors
from ..suspects.source import WEIGHT_FILE, NewRepo, RepoSource, Source, hub_api
from .describe import Content, Extras
from .draft import ReadMark, contents, draft, existing_card
from .files import SIGNATURE, never_published
from .precommit import FOLDER
from .statement import SignedStatement


TRAINING_ARGS = "training_args.bin"


@dataclass(frozen=True)
class Published:
    """
    Args:
        commit (`str`): Hash of the commit.
        files (`list[str]`): What it holds.
        skipped (`dict[str, str]`): Files of the folder that were not published, and why.
        statement ([`SignedStatement`], *optional*): `None` where only model and precommit were published.
        evidence ([`Evidence`], *optional*): What was read from the files of the commit.
        warnings (`list[str]`): What the owner should mend.
    """

    repo_id: str
    commit: str
    url: str
    files: list[str]
    skipped: dict[str, str]
    statement: SignedStatement | None
    evidence: Evidence | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Preview:
    """
    What [`publish`] would commit to a new repository.

    Args:
        files (`dict[str, int]`): Names and bytes.
        skipped (`dict[str, str]`): Files of the folder that stay, and why.
        card (`str`, *optional*): The whole `README.md`.
    """

    files: dict[str, int]
    skipped: dict[str, str]
    card: str | None
    evidence: Evidence | None
    warnings: list[str]


def publish(
    folder: str | Path,
    repo_id: str,
    key: WatermarkKey,
    owner: Owner | None = None,
    read_mark: ReadMark | None = None,
    extras: Extras | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Publish marked model",
    include: Iterable[str] = (),
    license: str | None = None,
) -> Published:
    """
    Uploads a model folder in one commit, with `watermark/` and a card. Nothing is written unless everything can be.

    What is signed for is what is pushed: the mark is read from the files of this commit, and a file that changes between the reading and the
    commit is refused. With an owner, and when the mark is there, the commit holds a signed statement; otherwise the precommit only, and no
    claim.

    Args:
        folder (`str` or `Path`):
            Saved model. Files of known kinds are published: the weights, the JSON files that models and image processors save, the card,
            license and notice, lists of labels, PNG and JPEG images. Everything else stays where it is.
        read_mark (`Callable[[Path], Evidence]`, *optional*):
            Reads the mark from a folder: `lambda folder: verify(folder, key)`. Without it nothing is claimed.
        private (`bool`, *optional*):
            For a repository that does not exist yet.
        include (`Iterable[str]`, *optional*):
            Files of other kinds to publish, by their path in the folder. Archives, pickles and files of a key are refused.
        license (`str`, *optional*):
            For the card, such as `apache-2.0`.

    Raises:
        [`~publishing.SecretFound`]: when a file holds a secret of key or owner.
        [`~publishing.PublishConflict`]: when somebody else committed in the meantime.
        [`~serialization.InvalidInput`]: when the folder holds no safetensors, a file is not what its name says or changes meanwhile, or
            the Hub refuses.

    Example:

    ```python
    >>> from hf_watermark import verify
    >>> from hf_watermark.publishing import publish

    >>> publish("my-model", "me/my-model", key, owner, lambda folder: verify(folder, key), include=["notes.txt"], license="apache-2.0")
    ```
    """
    drafted = draft(Path(folder), key, owner, read_mark, extras or Extras(), include)
    with hub_errors(repo_id):
        repo_id = hub_api(token).create_repo(repo_id, private=private, exist_ok=True).repo_id
    remote = RepoSource(repo_id, revision, token)
    made = contents(drafted, repo_id, remote, license)
    made.warnings += leftovers(remote, made.files)
    drafted.selected.refuse_changed("after its mark was read")
    info = commit(remote, made.files, message, token, revision, digests=drafted.selected.digests)
    drafted.selected.refuse_changed(f"while it was uploaded, so that {info.commit_url} may hold another file")
    return Published(
        repo_id,
        info.oid,
        info.commit_url,
        sorted(made.files),
        drafted.selected.skipped,
        made.statement,
        drafted.evidence,
        made.warnings,
    )


def preview(
    folder: str | Path,
    repo_id: str,
    key: WatermarkKey,
    owner: Owner | None = None,
    read_mark: ReadMark | None = None,
    extras: Extras | None = None,
    include: Iterable[str] = (),
    license: str | None = None,
) -> Preview:
    """
    What [`publish`] would do with the same arguments in a new repository. Writes nothing and needs no network: a card that is on the Hub
    already is not seen, and no authority is asked for a date.
    """
    drafted = draft(Path(folder), key, owner, read_mark, replace(extras or Extras(), timestamps=()), include)
    made = contents(drafted, repo_id, NewRepo(repo_id), license)
    sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in sorted(made.files.items())}
    return Preview(sizes, drafted.selected.skipped, made.card, drafted.evidence, made.warnings)


def leftovers(remote: Source, files: Iterable[str]) -> list[str]:
    """Warnings about files of an earlier upload, perhaps with another tool, that stay in the repository and would not be published today."""
    refused = [
        name for name in remote.sizes if never_published(name) and name not in set(files) and not _is_ours(name)
    ]
    return [
        f"{remote.name} holds {name} from an earlier upload, which may hold secrets; delete it there"
        for name in refused
    ]


def fetch_card(folder: str | Path, repo_id: str, token: str | None = None, revision: str | None = None) -> None:
    """Puts the repository's card into a folder that has none, so that what people wrote on the Hub is not replaced by a draft."""
    local = Path(folder) / "README.md"
    if not local.exists():
        text = existing_card(RepoSource(repo_id, revision, token))
        if text is not None:
            write_bytes_atomic(local, text.encode())


def commit(
    remote: RepoSource,
    files: Mapping[str, Content],
    message: str,
    token: str | None = None,
    revision: str | None = None,
    keep: bool = False,
    digests: Mapping[str, str] | None = None,
) -> Any:
    """
    One commit on top of the one that was read, or none. Unless asked to `keep` them, weights and public files that this set replaces are
    deleted with it.

    Args:
        digests (`Mapping[str, str]`, *optional*): SHA-256 that the commit must name for files that are read from disk.
    """
    stale = [] if keep else [name for name in remote.sizes if name not in files and _is_ours(name)]
    additions = [CommitOperationAdd(name, content) for name, content in files.items()]
    for added in additions:
        wanted = (digests or {}).get(added.path_in_repo)
        if isinstance(added.path_or_fileobj, Path | str) and wanted not in (None, added.upload_info.sha256.hex()):
            raise InvalidInput(
                f"{added.path_or_fileobj}: changed after its mark was read; publish again when nobody writes there"
            )
    operations: list[Any] = [*additions]
    operations += [CommitOperationDelete(name, is_folder=False) for name in stale]
    fields: Any = {"commit_message": message, "parent_commit": remote.commit, "revision": revision}
    try:
        with hub_errors(remote.name):
            return hub_api(token).create_commit(str(remote.model_id), operations, **fields)
    except ValueError as error:
        if isinstance(error, InvalidInput):
            raise
        # The metadata check of the Hub, before anything is uploaded.
        raise InvalidInput(f"README.md: the Hub refuses its metadata: {' '.join(str(error).split())}") from None


def _is_ours(name: str) -> bool:
    """Files whose old version would contradict the new commit."""
    stale_weights = WEIGHT_FILE.fullmatch(name) or name in ("pytorch_model.bin", TRAINING_ARGS, SIGNATURE)
    return bool(stale_weights) or name.startswith(f"{FOLDER}/")
