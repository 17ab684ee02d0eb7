"""The owner: an Ed25519 identity whose private key never leaves the owner's disk."""

import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..serialization import InvalidInput
from ..serialization.kinds import KEY_DOCUMENT, refuse_other_kinds
from . import entropy
from .envelope import read_envelope, write_envelope
from .folders import refuse_model_folder


OWNER_FILE = "an owner file, as `hf-watermark owner create` writes it"


class Owner:
    """
    An Ed25519 signing identity (RFC 8032). Make one with [`Owner.create`], once for all models.

    Args:
        private_key (`Ed25519PrivateKey`):
            Of the library `cryptography`.

    Example:

    ```python
    >>> from hf_watermark import Owner

    >>> owner = Owner.create()
    >>> owner.save("me/owner.json", passphrase="correct horse battery")
    >>> owner = Owner.load("me/owner.json", passphrase="correct horse battery")
    ```
    """

    def __init__(self, private_key: Ed25519PrivateKey):
        self._private_key = private_key

    @classmethod
    def create(cls) -> "Owner":
        """A new identity from 32 random bytes."""
        return cls.of(entropy.draw(32))

    @classmethod
    def of(cls, private_bytes: bytes) -> "Owner":
        """
        The identity with these 32 secret bytes.

        Raises:
            `ValueError`: for another number of bytes.
        """
        return cls(Ed25519PrivateKey.from_private_bytes(private_bytes))

    @property
    def public_key(self) -> bytes:
        """The 32 public bytes."""
        return self._private_key.public_key().public_bytes_raw()

    @property
    def fingerprint(self) -> str:
        """Short public name of this identity: the first 16 hex digits of the SHA-256 of the public key."""
        return fingerprint(self.public_key)

    def private_bytes(self) -> bytes:
        """The 32 secret bytes: for the scanner that keeps them out of uploads."""
        return self._private_key.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature."""
        return self._private_key.sign(message)

    def save(self, path: str | Path, passphrase: str | None = None) -> Path:
        """
        Writes the private key to `path` (mode 0600), encrypted where there is a passphrase.

        Raises:
            `ValueError`: when the file would lie inside a model folder, where it would be published with the model.
            `FileExistsError`: when the file is there already.
        """
        path = Path(path)
        refuse_model_folder(path)
        payload = {"kind": "owner", "private_key": self.private_bytes().hex()}
        write_envelope(path, payload, passphrase, overwrite=False)
        return path

    @classmethod
    def load(cls, path: str | Path, passphrase: str | None = None) -> "Owner":
        """
        The identity that `save` wrote.

        Raises:
            [`~keys.WrongPassphrase`]: when the passphrase is missing or wrong.
            [`~serialization.InvalidInput`]: when the file is missing, edited, or holds something else.
        """
        refuse_other_kinds(path, OWNER_FILE, KEY_DOCUMENT)
        payload = read_envelope(Path(path), passphrase)
        if payload.get("kind") != "owner":
            raise InvalidInput(f"{path}: holds a {payload.get('kind')!r}, not an owner; expected {OWNER_FILE}")
        try:
            return cls.of(bytes.fromhex(payload["private_key"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"{path}: not a valid owner file ({error})") from None

    def __repr__(self) -> str:
        return f"Owner({self.fingerprint})"


def fingerprint(public_key: bytes) -> str:
    return hashlib.sha256(public_key).hexdigest()[:16]


def is_signed_by(public_key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
