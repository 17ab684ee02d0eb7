"""One atomic commit that publishes a marked model with everything by which others can check it."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from ..evidence import Evidence
from ..keys import Opening, Owner, WatermarkKey, refuse_keys_inside
from ..serialization import (
    InvalidInput,
    SafetensorsFolder,
    canonical_json,
    named_tensors_digest,
    parse_json,
    tensor_set_digest,
    write_bytes_atomic,
)
from ..version import VERSION
from .card import add_tags, tags_of, watermark_card, without_section
from .errors import hub_errors
from .precommit import FOLDER, PRECOMMIT, Precommit
from .scan import Scanner, refuse_secrets, secrets_of
from .schema import parsed, validated, without_floats
from .source import WEIGHT_FILE, RepoSource, hub_api
from .statement import (
    STATEMENT,
    CertificateClaim,
    Fidelity,
    SignedStatement,
    Stamp,
    Statement,
    Survival,
    claim_bound_log2,
    format_date,
    rounded_up,
)
from .timestamp import SUFFIX, TOKEN_BYTES, request_token


SUBKEY0, POOL, BURNT = f"{FOLDER}/subkey0.json", f"{FOLDER}/pool.safetensors", f"{FOLDER}/burnt.json"
SIGNATURE = "model.sig"
TRAINING_ARGS = "training_args.bin"
CARD_BYTES = 2**20
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz")
Content = bytes | Path


@dataclass
class Extras:
    """
    What an owner can add to a statement.

    Args:
        fidelity ([`Fidelity`], *optional*):
            Task metric of marked model and twin.
        survival (`Sequence`):
            Rows of `survival_table`.
        certificates (`Sequence`):
            What `trainer.certify()` returned, or its `to_dict()`.
        timestamps (`Sequence[str]`):
            Addresses of RFC 3161 authorities that date the statement.
        precommit_tokens (`Mapping[str, bytes]`):
            Tokens over the precommit by file name. Tokens in `watermark/` of folder or repository are found without this.
        original (`str` or `Path`, *optional*):
            Folder of the unmarked original that is kept for disputes; only its digest is published.
        burnt (`Sequence[int]`):
            Sub-keys that were opened in earlier disputes.
        signing_key (`EllipticCurvePrivateKey`, *optional*):
            P-256 key for an OpenSSF signature of the files (extra `signing`).
        publish_pool (`bool`, *optional*, defaults to `False`):
            Publish the source images of sub-key 0, without which nobody can ask a black-box mark. They come from the training data.
    """

    fidelity: Fidelity | None = None
    survival: Sequence[Mapping[str, Any]] = ()
    certificates: Sequence[Any] = ()
    timestamps: Sequence[str] = ()
    precommit_tokens: Mapping[str, bytes] = field(default_factory=dict)
    original: str | Path | None = None
    burnt: Sequence[int] = ()
    signing_key: EllipticCurvePrivateKey | None = None
    publish_pool: bool = False


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
    config = parse_json(path.read_bytes(), allow_floats=True, max_bytes=CARD_BYTES, max_brackets=100_000)
    arguments = config.get("model_args")
    if "pretrained_cfg" not in config or not isinstance(arguments, dict) or "num_classes" not in arguments:
        return path
    del arguments["num_classes"]
    if not arguments:
        del config["model_args"]
    return (json.dumps(config, indent=2) + "\n").encode()


def opened_subkeys(key: WatermarkKey) -> list[int]:
    """Sub-key 0 is opened on purpose where others remain secret."""
    return [0] if sum(len(assignment.subkeys) for assignment in key.assignments) > 1 else []


def opened_files(key: WatermarkKey, opened: Iterable[int], extras: Extras) -> dict[str, Content]:
    files: dict[str, Content] = {}
    for index in opened:
        opening = Opening.of(key, index)
        files[SUBKEY0] = canonical_json(opening.to_dict()) + b"\n"
        if extras.publish_pool and opening.pool:
            from safetensors.torch import save

            files[POOL] = save(opening.pool)
    if extras.burnt:
        files[BURNT] = (
            canonical_json({"schema": "hf-watermark/burnt/v1", "subkeys": sorted(set(extras.burnt))}) + b"\n"
        )
    return files


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


def describe(
    files: Mapping[str, Content],
    folder: Path,
    model_id: str,
    key: WatermarkKey,
    evidence: Evidence,
    extras: Extras,
    added: Mapping[str, Content],
    supersedes: str | None,
) -> Statement:
    """The statement of a model whose mark was found."""
    tensors = SafetensorsFolder(folder)
    parts = evidence.parts if evidence.method == "combined" else [evidence]
    by_method = {part.method: part for part in parts}
    precommit = Precommit.of(key)
    certificates = [item if isinstance(item, Mapping) else item.to_dict() for item in extras.certificates]
    signing = extras.signing_key
    if signing is not None:
        from .signing import public_point
    document = {
        "schema": "hf-watermark/statement/v1",
        "library": "hf_watermark",
        "library_version": VERSION,
        "model_id": model_id,
        "architecture": architecture(files),
        "created": format_date(datetime.now(UTC)),
        **{name: getattr(precommit, name) for name in ("public_key", "precommit", "subkey_root", "subkey_count")},
        "spec_sha256": precommit.spec_sha256,
        "precommit_timestamps": [_stamp(name, raw).plain() for name, raw in added.items() if name.endswith(SUFFIX)],
        "beacon": key.beacon.hex(),
        "beacon_source": key.beacon_source,
        "opened_subkeys": [0] if SUBKEY0 in added else [],
        "weights": {
            "files": [{"path": name, **_digest(content)} for name, content in sorted(files.items())],
            "named_tensors_sha256": named_tensors_digest(tensors),
            "tensor_set_sha256": tensor_set_digest(tensors),
            "tensors": len(tensors),
            "parameters": sum(_elements(shape) for shape in tensors.shapes.values()),
        },
        "methods": [
            {
                "name": assignment.method,
                "version": assignment.version,
                "config": {
                    name: value
                    for name, value in without_floats(assignment.config).items()
                    if name not in ("method", "format_version")
                },
                "spec_sha256": assignment.spec.hex(),
                "subkeys": list(assignment.subkeys),
                "access": part.access,
                "matches": part.matches,
                "trials": part.trials,
                "log2_p": rounded_up(part.log2_p),
            }
            for assignment in key.assignments
            if (part := by_method.get(assignment.method)) is not None
        ],
        "log2_p": rounded_up(evidence.log2_p),
        "level": evidence.level,
        "false_positive_log2": claim_bound_log2(evidence.level),
        "fidelity": None if extras.fidelity is None else extras.fidelity.plain(),
        "survival": [Survival.of(dict(row)).plain() for row in extras.survival if row.get("verdict") != "n/a"],
        "certificates": [CertificateClaim.of(dict(item)).plain() for item in certificates],
        "original_tensor_set_sha256": tensor_set_digest(SafetensorsFolder(extras.original))
        if extras.original
        else None,
        "oms_public_key": public_point(signing.public_key()) if signing is not None else None,
        "supersedes": supersedes,
    }
    return _reread(document)


def _reread(document: dict[str, Any]) -> Statement:
    # Through bytes, as every reader will see it.
    return parsed(Statement, canonical_json(document), "statement")


def dated(signed: SignedStatement, urls: Sequence[str]) -> tuple[SignedStatement, dict[str, Content]]:
    """The statement with tokens of the authorities, and the tokens as files."""
    tokens: dict[str, Content] = {}
    for number, url in enumerate(urls):
        tokens[f"{FOLDER}/statement.{number}{SUFFIX}"] = request_token(url, signed.statement.to_sign)
    stamps = [_stamp(name, raw).plain() for name, raw in tokens.items()]
    return validated(SignedStatement, signed.plain() | {"timestamps": stamps}, "statement"), tokens


def superseded(remote: RepoSource, key: WatermarkKey) -> str | None:
    """Digest of the statement that is in the repository now."""
    raw = remote.read(STATEMENT)
    if raw is None:
        return None
    try:
        old = SignedStatement.parse(raw).statement
    except InvalidInput:
        return None  # not readable for anybody
    if old.public_key != key.public_key.hex():
        raise InvalidInput(
            f"{remote.name}: carries the statement of another owner ({old.fingerprint}); publish to a repository of your own"
        )
    return hashlib.sha256(old.to_sign).hexdigest()


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


def architecture(files: Mapping[str, Content]) -> str:
    """What the model's own config calls it."""
    content = files.get("config.json")
    if content is None:
        return "unknown"
    raw = content.read_bytes() if isinstance(content, Path) else content
    config = parse_json(raw, allow_floats=True, max_bytes=CARD_BYTES, max_brackets=100_000)
    name = config.get("architecture") or config.get("model_type") or "unknown"
    return str(name)


def _digest(content: Content) -> dict[str, Any]:
    if isinstance(content, bytes):
        return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    with content.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": content.stat().st_size}


def _stamp(name: str, raw: Content) -> Stamp:
    return Stamp(path=name, sha256=_digest(raw)["sha256"])


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
