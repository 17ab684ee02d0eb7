"""The statement of a marked model, put together from key, evidence and files."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from ..evidence import Evidence
from ..keys import PUBLIC_SUBKEY, BurntEntry, Opening, WatermarkKey, public_subkeys
from ..package import VERSION
from ..serialization import (
    InvalidInput,
    SafetensorsFolder,
    canonical_json,
    named_tensors_digest,
    parse_json,
    tensor_set_digest,
)
from ..serialization.schema import parsed, validated, without_floats
from ..suspects.source import Source
from .parts import Ancestor, CertificateClaim, Fidelity, Stamp, Survival, rounded_up
from .precommit import FOLDER, Precommit
from .statement import STATEMENT, SignedStatement, Statement, claim_bound_log2, format_date
from .timestamp import SUFFIX, request_token


SUBKEY0, POOL = f"{FOLDER}/subkey0.json", f"{FOLDER}/pool.safetensors"
CONFIG_BYTES = 2**20
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
        burnt (`Sequence[BurntEntry]`):
            Sub-keys that were opened or asked before, from the key folder's log ([`~keys.burnt_log`]); the statement says so.
        signing_key (`EllipticCurvePrivateKey`, *optional*):
            P-256 key for an OpenSSF signature of the files (extra `signing`).
        publish_pool (`bool`, *optional*, defaults to `False`):
            Publish the source images of sub-key 0, without which nobody can ask a black-box mark. They come from the training data.
        derived_from (`Sequence[Ancestor]`):
            Keys that were in the model before this one, see [`~publishing.origins.origin_in`].
        allow_weak (`bool`, *optional*, defaults to `False`):
            Publish a mark that is found, but is weaker than its config asked for (`target_log2_p`), or of which a stacked method or a sub-key is not in.
    """

    fidelity: Fidelity | None = None
    survival: Sequence[Mapping[str, Any]] = ()
    certificates: Sequence[Any] = ()
    timestamps: Sequence[str] = ()
    precommit_tokens: Mapping[str, bytes] = field(default_factory=dict)
    original: str | Path | None = None
    burnt: Sequence[BurntEntry] = ()
    signing_key: EllipticCurvePrivateKey | None = None
    publish_pool: bool = False
    derived_from: Sequence[Ancestor] = ()
    allow_weak: bool = False


def opened_subkeys(key: WatermarkKey) -> list[int]:
    """Sub-key 0 is opened on purpose where its method has others."""
    return sorted(public_subkeys([assignment.share for assignment in key.assignments]))


def opened_files(key: WatermarkKey, opened: Iterable[int], extras: Extras) -> dict[str, Content]:
    files: dict[str, Content] = {}
    for index in opened:
        opening = Opening.of(key, index)
        files[SUBKEY0] = canonical_json(opening.to_dict()) + b"\n"
        if extras.publish_pool and opening.pool:
            from safetensors.torch import save

            files[POOL] = save(opening.pool)
    return files


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
    by_method = evidence.by_method
    for assignment in key.assignments:
        if assignment.method not in by_method:
            raise InvalidInput(
                f"`{assignment.method}` was not read from this model, and a statement describes all that the key commits to: "
                f"{'; '.join(evidence.warnings) or 'check the folder with hf-watermark verify'}"
            )
    precommit = Precommit.of(key)
    certificates = [item if isinstance(item, Mapping) else item.to_dict() for item in extras.certificates]
    signing = extras.signing_key
    if signing is not None:
        from .signing import public_point
    document = {
        "schema": "hf-watermark/statement/v2",
        "library": "hf_watermark",
        "library_version": VERSION,
        "model_id": model_id,
        "architecture": architecture(files),
        "created": format_date(datetime.now(UTC)),
        **{name: getattr(precommit, name) for name in ("public_key", "precommit", "subkey_root", "subkey_count")},
        "spec_sha256": precommit.spec_sha256,
        "model_sha256": key.context.digest.hex(),
        "precommit_timestamps": [_stamp(name, raw).plain() for name, raw in added.items() if name.endswith(SUFFIX)],
        "beacon": key.beacon.hex(),
        "beacon_source": key.beacon_source,
        "opened_subkeys": [PUBLIC_SUBKEY] if SUBKEY0 in added else [],
        "disclosed": [
            {"subkey": entry.subkey, "nonce_sha256": hashlib.sha256(entry.nonce.encode()).hexdigest()}
            for entry in extras.burnt
        ],
        "weights": {
            "files": [{"path": name, **_digest(content)} for name, content in sorted(files.items())],
            "named_tensors_sha256": named_tensors_digest(tensors),
            "tensor_set_sha256": tensor_set_digest(tensors),
            "tensors": len(tensors),
            "parameters": sum(math.prod(shape) for shape in tensors.shapes.values()),
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
                "access": part.read_from,
                "matches": part.matches,
                "trials": part.trials,
                "log2_p": rounded_up(part.log2_p),
            }
            for assignment in key.assignments
            for part in [by_method[assignment.method]]
        ],
        "log2_p": rounded_up(evidence.log2_p),
        "level": str(evidence.level),
        "false_positive_log2": claim_bound_log2(evidence.level),
        "fidelity": None if extras.fidelity is None else extras.fidelity.plain(),
        "survival": [Survival.of(dict(row)).plain() for row in extras.survival if row.get("verdict") != "n/a"],
        "certificates": [CertificateClaim.of(dict(item)).plain() for item in certificates],
        "original_tensor_set_sha256": tensor_set_digest(SafetensorsFolder(extras.original))
        if extras.original
        else None,
        "oms_public_key": public_point(signing.public_key()) if signing is not None else None,
        "supersedes": supersedes,
        "derived_from": [origin.plain() for origin in extras.derived_from],
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


def superseded(remote: Source, key: WatermarkKey) -> str | None:
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
    return old.digest


def config_of(files: Mapping[str, Content]) -> dict[str, Any]:
    """The model's own config; empty when there is none."""
    content = files.get("config.json")
    if content is None:
        return {}
    raw = content.read_bytes() if isinstance(content, Path) else content
    return parse_json(raw, allow_floats=True, max_bytes=CONFIG_BYTES, max_brackets=100_000)


def architecture(files: Mapping[str, Content]) -> str:
    """What the model's own config calls it."""
    config = config_of(files)
    name = config.get("architecture") or config.get("model_type") or "unknown"
    return str(name)


def _digest(content: Content) -> dict[str, Any]:
    if isinstance(content, bytes):
        return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    with content.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": content.stat().st_size}


def _stamp(name: str, raw: Content) -> Stamp:
    return Stamp(path=name, sha256=_digest(raw)["sha256"])
