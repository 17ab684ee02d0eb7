"""OpenSSF Model Signing of the published files (extra `signing`): their integrity, beside the mark that survives changes."""

import base64
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)

from ..serialization import InvalidInput, parse_json, write_bytes_atomic


SIGNATURE_BYTES = 2**20
# What people edit after signing, what is signed elsewhere, and what Git and the client keep for themselves.
_IGNORABLE = re.compile(
    r"(?:README\.md|model\.sig|watermark|\.git|\.gitattributes|\.gitignore|\.github|\.cache)(?:/.*)?"
)


def _library() -> Any:
    try:
        from model_signing import hashing, signing, verifying
    except ImportError:
        raise ImportError("model signatures need the extra `signing`: pip install 'hf-watermark[signing]'") from None
    return hashing, signing, verifying


def new_signing_key() -> EllipticCurvePrivateKey:
    """P-256: the format has no Ed25519, so the owner's key cannot be used; the statement names this one."""
    return generate_private_key(SECP256R1())


def read_signing_key(path: Path, passphrase: bytes | None = None) -> EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), passphrase)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{path}: no PEM private key, or its passphrase is wrong ({error})") from None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise InvalidInput(f"{path}: not a P-256 key; model signatures know no other kind that works everywhere")
    return key


def public_point(key: EllipticCurvePublicKey) -> str:
    """The key as a compressed point, hexadecimal: the form in which a statement pins it."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint).hex()


def sign_files(files: Mapping[str, bytes | Path], key: EllipticCurvePrivateKey) -> bytes:
    """The content of `model.sig` for exactly these files."""
    hashing, signing, _ = _library()
    with _laid_out(files) as folder, tempfile.TemporaryDirectory() as desk:
        pem, signature = Path(desk) / "key.pem", Path(desk) / "model.sig"
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        write_bytes_atomic(pem, key.private_bytes(encoding, form, serialization.NoEncryption()), mode=0o600)
        config = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
        signing.Config().use_elliptic_key_signer(private_key=pem).set_hashing_config(config).sign(folder, signature)
        return signature.read_bytes()


def check_signature(files: Mapping[str, Path], signature: bytes, point: str) -> None:
    """
    Checks `model.sig` against the files and the pinned key.

    Args:
        files (`Mapping[str, Path]`): Everything in the repository that the signature should cover.
        point (`str`): The key, from the statement: what the bundle itself says about its key is a hint and proves nothing.

    Raises:
        [`~serialization.InvalidInput`]: when a file differs, is missing or was added, or another key signed.
    """
    _, _, verifying = _library()
    refuse_exemptions(signature)
    try:
        key = EllipticCurvePublicKey.from_encoded_point(SECP256R1(), bytes.fromhex(point))
    except ValueError:
        raise InvalidInput("model.sig: the statement names a key that does not exist") from None
    covered = {name: path for name, path in files.items() if not _IGNORABLE.fullmatch(name)}
    with _laid_out(covered) as folder, tempfile.TemporaryDirectory() as desk:
        pem, bundle = Path(desk) / "key.pem", Path(desk) / "model.sig"
        encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        pem.write_bytes(key.public_bytes(encoding, form))
        bundle.write_bytes(signature)
        try:
            verifying.Config().use_elliptic_key_verifier(public_key=pem).verify(folder, bundle)
        except Exception as error:  # KeyError, IndexError, RecursionError and more for hostile bundles
            raise InvalidInput(f"model.sig: does not fit these files ({_short(error)})") from None


def refuse_exemptions(signature: bytes) -> None:
    """The verifier takes the list of files that need no signature from the signed manifest: no file that matters may be on it."""
    if len(signature) > SIGNATURE_BYTES:
        raise InvalidInput(f"model.sig: has {len(signature)} bytes, limit {SIGNATURE_BYTES}")
    bundle = parse_json(signature, max_bytes=SIGNATURE_BYTES)
    try:
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True)
        manifest = parse_json(payload, max_bytes=SIGNATURE_BYTES, max_brackets=50_000)
        exempt = [str(name) for name in manifest["predicate"]["serialization"].get("ignore_paths") or []]
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"model.sig: not a signature bundle ({_short(error)})") from None
    uncovered = [name for name in exempt if not _IGNORABLE.fullmatch(name)]
    if uncovered:
        raise InvalidInput(f"model.sig: exempts {uncovered[0][:80]!r} from the signature")


@contextmanager
def _laid_out(files: Mapping[str, bytes | Path]) -> Iterator[Path]:
    """
    A folder with exactly these files: the signature covers a folder, and the one of a training run holds more. Hard links where the
    file system has them; symbolic links are refused by the format.
    """
    first = next((content.resolve().parent for content in files.values() if isinstance(content, Path)), None)
    place = first.parent if first is not None and os.access(first.parent, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix=".hf-watermark-") as name:
        folder = Path(name) / "model"
        folder.mkdir()
        for path, content in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
                continue
            try:
                os.link(content.resolve(), target)
            except OSError:
                shutil.copyfile(content, target)
        yield folder


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
