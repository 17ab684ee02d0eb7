"""
The one JSON envelope in which secrets rest on disk (PROTOCOL.md §4.3): Argon2id + ChaCha20-Poly1305, file mode 0600.

A passphrase has one normal form, Unicode NFC: some systems type an umlaut as one character, others as a letter and two dots.

Without a passphrase the payload is stored as it is, protected by the file mode alone, like an SSH key made with an empty
passphrase; the envelope says so and a warning is raised on writing. A random passphrase is never stored beside the file.
"""

import base64
import hashlib
import hmac
import os
import unicodedata
import warnings
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from ..serialization import (
    InvalidInput,
    canonical_json,
    make_private_dir,
    parse_json,
    read_private_bytes,
    write_bytes_atomic,
)
from ..serialization.files import refuse_existing


FORMAT = "hf-watermark/keyfile/v1"
MAX_BYTES = 4 * 2**20
ARGON2 = {"name": "argon2id", "memory_kib": 65_536, "iterations": 3, "lanes": 4}
# On reading: four times the memory and the work of what is written here, about a second.
MOST_KIB, MOST_WORK = 4 * 65_536, 4 * 3 * 65_536
SHORTEST = 12


class WrongPassphrase(InvalidInput):
    """The passphrase does not open this key file."""


def normal_form(passphrase: str) -> bytes:
    """
    The bytes that a passphrase stands for, however it was typed: NFC (UAX #15), UTF-8.

    Raises:
        [`InvalidInput`]: when it is no text (a lone surrogate). The message does not quote it.
    """
    try:
        return unicodedata.normalize("NFC", passphrase).encode()
    except UnicodeEncodeError:
        raise InvalidInput("the passphrase is not Unicode text; type it again") from None


def _derive(passphrase: str, kdf: dict) -> tuple[bytes, bytes]:
    # Caps on read: a hostile key file must not turn the derivation into a memory bomb.
    for field, low, high in (("memory_kib", 8 * kdf["lanes"], MOST_KIB), ("iterations", 1, 10), ("lanes", 1, 16)):
        if not low <= kdf[field] <= high:
            raise InvalidInput(
                f"key file: kdf.{field}={kdf[field]} is outside [{low}, {high}]: this library did not write it; restore the key from a backup"
            )
    if kdf["memory_kib"] * kdf["iterations"] > MOST_WORK:
        raise InvalidInput(
            f"key file: kdf.memory_kib x kdf.iterations is {kdf['memory_kib'] * kdf['iterations']}, limit {MOST_WORK}: this library did not write it; restore the key from a backup"
        )
    derived = Argon2id(
        salt=_unb64(kdf["salt"]),
        length=64,
        iterations=kdf["iterations"],
        lanes=kdf["lanes"],
        memory_cost=kdf["memory_kib"],
    ).derive(normal_form(passphrase))
    return derived[:32], derived[32:]


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unb64(text: str) -> bytes:
    data = base64.b64decode(text, validate=True)
    if _b64(data) != text:  # the last character has unused bits
        raise ValueError("base64 is not in its one canonical form")
    return data


def seal(payload: dict, passphrase: str | None) -> bytes:
    """The envelope's bytes for `payload`; encrypted when a passphrase is given."""
    plain = canonical_json(payload)
    if passphrase is None:
        commit = hashlib.sha256(plain).digest()
        header = {"format": FORMAT, "kdf": {"name": "none"}, "cipher": "none", "commit": _b64(commit)}
        return canonical_json(header | {"ciphertext": _b64(plain)})
    characters = len(normal_form(passphrase).decode())
    if characters < SHORTEST:
        raise ValueError(f"the passphrase has {characters} characters; use at least {SHORTEST}")
    kdf = ARGON2 | {"salt": _b64(os.urandom(16))}
    key, commit = _derive(passphrase, kdf)
    nonce = os.urandom(12)
    header = {
        "format": FORMAT,
        "kdf": kdf,
        "cipher": "chacha20-poly1305",
        "nonce": _b64(nonce),
        "commit": _b64(commit),
    }
    ciphertext = ChaCha20Poly1305(key).encrypt(nonce, plain, canonical_json(header))
    return canonical_json(header | {"ciphertext": _b64(ciphertext)})


def unseal(raw: bytes, passphrase: str | None, name: str = "key file", max_bytes: int = MAX_BYTES) -> dict:
    """
    The payload of an envelope.

    Raises:
        [`WrongPassphrase`]: when the passphrase is missing or does not open the file.
        [`InvalidInput`]: when the file is truncated, edited or not an envelope.
    """
    try:
        envelope = parse_json(raw, max_bytes=max_bytes)
    except InvalidInput as error:
        raise InvalidInput(f"{name}: truncated or not a key file ({error}); restore it from a backup") from None
    try:
        if envelope["format"] != FORMAT:
            raise InvalidInput(f"{name}: format is {envelope['format']!r}, expected {FORMAT!r}")
        header = {field: value for field, value in envelope.items() if field != "ciphertext"}
        ciphertext, commit = _unb64(envelope["ciphertext"]), _unb64(envelope["commit"])
        if header["kdf"]["name"] == "none":
            if not hmac.compare_digest(hashlib.sha256(ciphertext).digest(), commit) or header["cipher"] != "none":
                raise InvalidInput(
                    f"{name}: the content does not match its digest; the file was edited or damaged; restore it from a backup"
                )
            return parse_json(ciphertext, max_bytes=max_bytes, allow_floats=True)
        if passphrase is None:
            raise WrongPassphrase(f"{name}: is encrypted; give its passphrase")
        key, expected = _derive(passphrase, header["kdf"])
        # The AEAD alone is not key-committing, so the key is checked before anything is decrypted.
        if not hmac.compare_digest(expected, commit):
            raise WrongPassphrase(f"{name}: this passphrase does not open it")
        plain = ChaCha20Poly1305(key).decrypt(_unb64(header["nonce"]), ciphertext, canonical_json(header))
    except InvalidTag:
        raise InvalidInput(f"{name}: was edited or damaged after it was written (authentication failed)") from None
    except InvalidInput:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(f"{name}: not a key file ({type(error).__name__}: {error})") from None
    return parse_json(plain, max_bytes=max_bytes, allow_floats=True)


def write_envelope(path: Path, payload: dict, passphrase: str | None, overwrite: bool) -> None:
    if not overwrite:
        refuse_existing(path)
    if passphrase is None:
        warnings.warn(
            f"{path} is stored without a passphrase; only its file mode (0600) protects it. Give `passphrase=` to encrypt it.",
            stacklevel=3,
        )
    data = seal(payload, passphrase)
    make_private_dir(path.parent)
    write_bytes_atomic(path, data, mode=0o600, overwrite=overwrite)


def read_envelope(path: Path, passphrase: str | None) -> dict:
    return unseal(read_private_bytes(path, max_bytes=MAX_BYTES), passphrase, name=str(path))
