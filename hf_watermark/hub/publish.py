"""One atomic commit that publishes a marked model with everything by which others can check it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from ..evidence import Evidence
from ..keys import Owner, WatermarkKey, refuse_keys_inside
from ..serialization import InvalidInput, parse_json, write_bytes_atomic
from .card import add_tags, tags_of, watermark_card, without_section
from .describe import CONFIG_BYTES, Content, Extras, dated, describe, opened_files, opened_subkeys, superseded
from .errors import hub_errors
from .precommit import FOLDER, PRECOMMIT, Precommit
from .scan import Scanner, refuse_secrets, secrets_of
from .source import WEIGHT_FILE, RepoSource, hub_api
from .statement import STATEMENT, SignedStatement
from .timestamp import SUFFIX, TOKEN_BYTES


SIGNATURE = "model.sig"
TRAINING_ARGS = "training_args.bin"
CARD_BYTES = 2**20
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz")


@dataclass(frozen=True)
class Published:
    """
    Args:
        commit (`str`): Hash of the commit.
        files (`list[str]`): What it holds.
        skipped (`list[str]`): Files of the folder that are never published.
        statement ([`SignedStatement`], *optional*): `None` where only model and precommit were published.
    """

    repo_id: str
    commit: str
    url: str
    files: list[str]
    skipped: list[str]
    statement: SignedStatement | None


def publish(
    folder: str | Path,
    repo_id: str,
    key: WatermarkKey,
    owner: Owner | None = None,
    evidence: Evidence | None = None,
    extras: Extras | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Publish marked model",
) -> Published:
    """
    Uploads a model folder in one commit, with `watermark/` and a card. Nothing is written unless everything can be.

    With an owner and evidence that found the mark, the commit holds a signed statement; otherwise the precommit only, and no claim.

    Args:
        folder (`str` or `Path`):
            Saved model. `training_args.bin`, pickles, checkpoints and hidden files stay where they are.
        evidence ([`Evidence`], *optional*):
            Of this folder under this key.
        private (`bool`, *optional*):
            For a repository that does not exist yet.

    Raises:
        [`~hub.SecretFound`]: when a file holds a secret of key or owner.
        [`~hub.PublishConflict`]: when somebody else committed in the meantime.
        [`~serialization.InvalidInput`]: when the folder holds no safetensors, or the Hub refuses.
    """
    folder, extras = Path(folder), extras or Extras()
    refuse_keys_inside(folder)
    files, skipped = model_files(folder)
    sign = owner is not None and evidence is not None and evidence.found
    if sign and owner is not None and owner.public_key != key.public_key:
        raise InvalidInput(f"the key belongs to another owner than {owner.fingerprint}; give the owner who made it")
    opened = opened_subkeys(key) if sign else []
    scanner = Scanner(secrets_of(key, opened, owner))
    # Before anything leaves the machine; what is added below is scanned again.
    refuse_secrets(files, scanner)
    with hub_errors(repo_id):
        repo_id = hub_api(token).create_repo(repo_id, private=private, exist_ok=True).repo_id
    remote = RepoSource(repo_id, revision, token)
    signed = None
    added: dict[str, Content] = {PRECOMMIT: Precommit.of(key).to_bytes(), **precommit_tokens(folder, remote, extras)}
    if sign and owner is not None and evidence is not None:
        added |= opened_files(key, opened, extras)
        if extras.signing_key is not None:
            from .signing import sign_files

            added[SIGNATURE] = sign_files(files, extras.signing_key)
        statement = describe(files, folder, repo_id, key, evidence, extras, added, superseded(remote, key))
        signed = SignedStatement(statement=statement, signature=owner.sign(statement.to_sign).hex())
        signed, tokens = dated(signed, extras.timestamps)
        added |= tokens | {STATEMENT: signed.to_bytes()}
    files |= added
    text = card(folder, remote, signed)
    if text is not None:
        files["README.md"] = text.encode()
    refuse_secrets(files, scanner)
    info = commit(remote, files, message, token, revision)
    return Published(repo_id, info.oid, info.commit_url, sorted(files), skipped, signed)


def model_files(folder: Path) -> tuple[dict[str, Content], list[str]]:
    """
    What of a folder is published, and what is not.

    Raises:
        [`~serialization.InvalidInput`]: when there is no safetensors file in it.
    """
    files: dict[str, Content] = {}
    skipped = []
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if not path.is_file() or place.parts[0] == FOLDER or place.as_posix() in ("README.md", SIGNATURE):
            continue
        hidden = any(part.startswith((".", "_", "checkpoint-")) for part in place.parts)
        if hidden or path.suffix in PICKLED or path.is_symlink():
            skipped.append(place.as_posix())
        else:
            files[place.as_posix()] = path
    if not any(WEIGHT_FILE.fullmatch(name) for name in files):
        pickled = next((name for name in skipped if Path(name).suffix in PICKLED), None)
        why = f"{pickled} is pickled and is never published" if pickled else "it is no saved model"
        raise InvalidInput(f"{folder}: holds no .safetensors file ({why}); save the model with save_pretrained")
    if "config.json" in files:
        files["config.json"] = repaired_config(folder / "config.json")
    return files, skipped


def repaired_config(path: Path) -> Content:
    """
    The config of a timm export as transformers can load it: `model_args.num_classes` collides with the argument that its wrapper passes
    itself. Other configs stay as they are.
    """
    config = parse_json(path.read_bytes(), allow_floats=True, max_bytes=CONFIG_BYTES, max_brackets=100_000)
    arguments = config.get("model_args")
    if "pretrained_cfg" not in config or not isinstance(arguments, dict) or "num_classes" not in arguments:
        return path
    del arguments["num_classes"]
    if not arguments:
        del config["model_args"]
    return (json.dumps(config, indent=2) + "\n").encode()


def precommit_tokens(folder: Path, remote: RepoSource, extras: Extras) -> dict[str, bytes]:
    """Timestamps over the precommit: those given, beside the model, or already in the repository."""
    tokens = {}
    for name in remote.sizes:
        if name.startswith(f"{FOLDER}/precommit") and name.endswith(SUFFIX):
            tokens[name] = remote.read(name, TOKEN_BYTES) or b""
    for path in sorted((folder / FOLDER).glob(f"precommit*{SUFFIX}")):
        tokens[f"{FOLDER}/{path.name}"] = path.read_bytes()
    tokens |= {f"{FOLDER}/{name}": raw for name, raw in extras.precommit_tokens.items()}
    return tokens


def card(folder: Path, remote: RepoSource, signed: SignedStatement | None) -> str | None:
    """The folder's card, else the repository's, with the Watermark section of the statement, if there is one; tags of both."""
    local, theirs = folder / "README.md", existing_card(remote)
    text = local.read_text(encoding="utf-8") if local.is_file() else theirs
    if signed is not None:
        stamps = {"precommit": signed.statement.precommit_timestamps, "statement": signed.timestamps}
        text = watermark_card(
            signed, text, [f"{len(found)} over the {name}" for name, found in stamps.items() if found]
        )
    elif text is not None:
        text = without_section(text)
    return None if text is None else add_tags(text, tags_of(theirs))


def existing_card(remote: RepoSource) -> str | None:
    raw = remote.read("README.md", CARD_BYTES)
    return None if raw is None else raw.decode("utf-8", errors="replace")


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
) -> Any:
    """
    One commit on top of the one that was read, or none. Unless asked to `keep` them, weights and public files that this set replaces are
    deleted with it.
    """
    stale = [] if keep else [name for name in remote.sizes if name not in files and _is_ours(name)]
    operations: list[Any] = [CommitOperationAdd(name, content) for name, content in files.items()]
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
