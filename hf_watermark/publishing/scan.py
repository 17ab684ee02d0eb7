"""The last look before an upload: no file may hold a secret of the key, in any of the forms in which secrets leak."""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ..keys import Owner, WatermarkKey, key_inside
from ..keys.folders import KEY_FILE, SECRET_MARKS, kind_of_secret
from ..serialization import InvalidInput
from .contents import container


BLOCK = 8 * 2**20
LOOKED_AT = 64 * 2**20


class SecretFound(InvalidInput):
    """A file that was about to be published holds a secret; nothing was uploaded."""


def secrets_of(key: WatermarkKey, opened: Iterable[int] = (), owner: Owner | None = None) -> dict[str, bytes]:
    """
    Everything that must stay on the owner's disk, by name.

    Args:
        opened (`Iterable[int]`):
            Sub-keys that are published on purpose; their method's salt is public with them.
        owner ([`Owner`], *optional*):
            Adds the private signing key.
    """
    opened = set(opened)
    hidden = {"seed of the key": key.seed}
    if owner is not None:
        hidden["owner's private key"] = owner.private_bytes()
    for index in sorted(set(range(key.count)) - opened):
        hidden[f"secret of leaf {index}"], hidden[f"blind of leaf {index}"] = key.leaf(index)
    for claim in key.claims():
        if not opened & set(claim.assignment.subkeys):
            hidden[f"salt of {claim.assignment.method}"] = claim.assignment.salt
        for subkey in claim.subkeys:
            if subkey.index not in opened:
                hidden[f"sub-key {subkey.index}"] = subkey.secret
    return hidden


def forms_of(secret: bytes) -> dict[str, bytes]:
    """A secret as it may stand in a file: raw, hexadecimal, as numbers, or inside base64 text at any of the three alignments."""
    forms = {"raw": secret, "hex": secret.hex().encode(), "HEX": secret.hex().upper().encode()}
    forms |= {
        f"bytes/{mark}": mark.join(map(str, secret)).encode() for mark in (", ", ",", " ", "\n", ",\n  ", ",\n    ")
    }
    forms |= {f"hex/{mark}": secret.hex(mark).encode() for mark in (":", " ", "-")}
    forms |= {"base32": base64.b32encode(secret).rstrip(b"="), "base85": base64.b85encode(secret)}
    forms |= {
        "number": str(int.from_bytes(secret)).encode(),
        "swapped": str(int.from_bytes(secret, "little")).encode(),
    }
    url_safe = bytes.maketrans(b"+/", b"-_")
    for shift in range(3):
        # The first and last characters depend on the neighbours of the secret; those in between do not.
        text = base64.b64encode(bytes(shift) + secret)
        inner = text[4 * (shift > 0) : -4]
        forms |= {f"base64/{shift}": inner, f"base64url/{shift}": inner.translate(url_safe)}
    return forms


def text_forms(mark: bytes) -> set[bytes]:
    """Words as they stand inside base64 text, as in a key file that somebody encoded to paste it somewhere."""
    return {form for name, form in forms_of(mark).items() if name.startswith("base64")}


class Scanner:
    """
    Looks for many byte strings at once, at memory speed: a table says for every two bytes whether one of them begins so.

    Args:
        secrets (`Mapping[str, bytes]`): By the name that a finding is reported with.
    """

    def __init__(self, secrets: Mapping[str, bytes]):
        self.needles = [(name, form) for name, secret in secrets.items() for form in set(forms_of(secret).values())]
        self.needles += [("key file", form) for mark in SECRET_MARKS for form in {mark, *text_forms(mark)}]
        self.longest = max(len(form) for _, form in self.needles)
        self._by_start: dict[bytes, list[tuple[str, bytes]]] = {}
        for name, form in self.needles:
            self._by_start.setdefault(form[:4], []).append((name, form))
        self._starts = np.zeros(2**16, dtype=bool)
        for start in self._by_start:
            self._starts[int.from_bytes(start[:2], "little")] = True
        self._first_four = np.array(
            sorted(int.from_bytes(start, "little") for start in self._by_start), dtype=np.uint32
        )

    def find(self, content: bytes | Path) -> str | None:
        """Name of the first secret in the content; `None` when it is clean."""
        if isinstance(content, bytes):
            return self._find(content)
        with content.open("rb") as file:
            tail = b""
            while block := file.read(BLOCK):
                found = self._find(tail + block)
                if found:
                    return found
                tail = (tail + block)[-self.longest :]
        return None

    def _find(self, data: bytes) -> str | None:
        octets = np.frombuffer(data, dtype=np.uint8)
        if len(octets) < 4:
            return None
        pairs = octets[:-1].astype(np.uint16) | (octets[1:].astype(np.uint16) << 8)
        places = np.flatnonzero(self._starts[pairs[:-2]])
        fours = pairs[places].astype(np.uint32) | (pairs[places + 2].astype(np.uint32) << 16)
        for place in places[np.isin(fours, self._first_four)]:
            for name, form in self._by_start[data[place : place + 4]]:
                if data.startswith(form, place):
                    return name
        return None


def refuse_secrets(files: Mapping[str, bytes | Path], scanner: Scanner) -> None:
    """
    Raises:
        [`SecretFound`]: when one of the files holds a secret. The message names file and secret, never its value.
    """
    for path, content in files.items():
        found = scanner.find(content)
        if found:
            raise SecretFound(
                f"{path}: holds the {found}; nothing was uploaded. Remove it from the file; if it was ever public, make a new key"
            )


def refuse_key_files(folder: Path, skipped: Iterable[str], scanner: Scanner) -> None:
    """
    A secret has no place in a model folder, whether or not its file would be published: the next upload may be made with another tool.

    Args:
        skipped (`Iterable[str]`): Files that are not published; the small ones are searched as well.

    Raises:
        [`SecretFound`]: when a key, owner or backup file lies there, another file holds a secret, or an archive names a key file.
    """
    inside = key_inside(folder)
    if inside is not None:
        raise SecretFound(
            f"{inside.relative_to(folder)}: holds {kind_of_secret(inside)}; nothing was uploaded. Move it out of the model folder, for example to `keys/`"
        )
    for name in skipped:
        path = folder / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LOOKED_AT:
            continue
        refuse_secrets({name: path}, scanner)
        # Archives are not opened; those of the usual kinds list their files in plain text.
        if container(path) is not None and KEY_FILE.encode() in path.read_bytes():
            raise SecretFound(
                f"{name}: names a {KEY_FILE}, so it may be a backup of the key; nothing was uploaded. Move it out of the model folder"
            )
