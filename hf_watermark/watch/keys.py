"""The keys that a watch looks for, opened once per process."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..evidence import Access, Check
from ..keys import WatermarkKey
from ..mapping import AutoVerifier
from ..serialization import InvalidInput, read_private_bytes
from ..verification.carriers import CarrierVerifier
from ..verification.ranged import Stops
from ..verifying import self_check
from .settings import WatchSettings


# Argon2 takes a second per key: whoever asks for the same keys again, in another batch, gets the same objects.
_OPENED: dict[tuple[Any, ...], "list[WatchedKey]"] = {}
# Enough are more bits than a look of any number will ever need; a claim reads on. Six bits against a mark of which 70 % is left end a reading: one in
# a thousand such marks is lost by that, and one in eight readings of nothing goes on.
RADAR = Stops(enough=68.0, futile=-6.0, share=0.024, least=2**18)


@dataclass
class WatchedKey:
    """
    One key, and what reads its marks from weights.

    Args:
        folder (`str`):
            Its folder, by which the table names it.
        key ([`~keys.WatermarkKey`]):
            The key.
        check ([`~evidence.Check`]):
            What is decided before a look: a self-check, with two looks charged where there is a reference.
        verifiers (`list[CarrierVerifier]`):
            Of its methods that read weights.
        reference (`str`):
            Folder of the owner's model as it was when the key was made; empty where none was given.
    """

    folder: str
    key: WatermarkKey = field(repr=False)
    check: Check
    verifiers: list[CarrierVerifier] = field(repr=False)
    reference: str = ""

    @property
    def parameters(self) -> int:
        """How many numbers its carriers hold."""
        carriers = {carrier.name or carrier.role: carrier for reader in self.verifiers for carrier in reader.carriers}
        return sum(carrier.rows * carrier.columns for carrier in carriers.values())

    @property
    def of_adapter(self) -> bool:
        return any(reader.of_adapter for reader in self.verifiers)


def open_keys(settings: WatchSettings, passphrase: str | None = None) -> list[WatchedKey]:
    """
    The keys of a watch, in its order.

    Args:
        passphrase (`str`, *optional*):
            Where somebody typed it; else that of the settings' `passphrase_file`.

    Raises:
        [`~serialization.InvalidInput`]: for a folder that holds no key, a wrong passphrase, or a key without a method that reads weights.
    """
    references = settings.references or {}
    name = (settings.keys, settings.passphrase_file, tuple(sorted(references.items())))
    if name not in _OPENED:
        if passphrase is None and settings.passphrase_file:
            passphrase = read_passphrase_file(settings.passphrase_file)
        opened = [
            watched(folder, WatermarkKey.load(folder, passphrase), references.get(folder, ""))
            for folder in settings.keys
        ]
        refuse_twice(opened)
        share_order(opened)
        _OPENED[name] = opened
    return _OPENED[name]


def read_passphrase_file(path: str) -> str:
    """The first line of a private file."""
    return read_private_bytes(path, 4096).split(b"\n", 1)[0].removesuffix(b"\r").decode()


def watched(folder: str, key: WatermarkKey, reference: str = "") -> WatchedKey:
    """
    Raises:
        [`~serialization.InvalidInput`]: when no method of the key reads weights.
    """
    readers: list[Any] = [AutoVerifier.for_method(claim.assignment.method)(claim) for claim in key.claims()]
    readers = [reader for reader in readers if reader.access is Access.WEIGHTS]
    if not readers:
        methods = ", ".join(assignment.method for assignment in key.assignments)
        raise InvalidInput(
            f"{folder}: {methods} read answers, and a repository gives none to somebody who does not run it; watch with a key of a method that "
            "reads weights (`hf-watermark methods`)"
        )
    if all(subkey.index in key.disclosed for reader in readers for subkey in reader.claim.subkeys):
        raise InvalidInput(
            f"{folder}: every sub-key that reads weights was disclosed, so nothing that is found would count"
        )
    return WatchedKey(folder, key, self_check(key, looks=2 if reference else 1), readers, reference)


def refuse_twice(opened: Sequence[WatchedKey]) -> None:
    """
    Raises:
        [`~serialization.InvalidInput`]: when two folders hold one key: its p-values would be counted as two.
    """
    by_precommit: dict[bytes, str] = {}
    for item in opened:
        other = by_precommit.setdefault(item.key.precommit, item.folder)
        if other != item.folder:
            raise InvalidInput(f"{item.folder}: holds the same key as {other}; give it once")


def share_order(opened: Sequence[WatchedKey]) -> None:
    """
    Keys of one layout read the same rows first, so that one read serves all. Which ones follows from secrets of all of them, and from no
    bit of any: nobody else can know the rows, and no key's p-value depends on how they were drawn.
    """
    groups: dict[tuple[Any, ...], list[CarrierVerifier]] = {}
    for item in opened:
        for reader in item.verifiers:
            counted = tuple(subkey.slot for subkey in reader.claim.subkeys if subkey.index not in item.check.disclosed)
            # What a key knows of the rows of its own model changes nothing of where they are.
            carriers = tuple(replace(carrier, witness="") for carrier in reader.carriers)
            groups.setdefault((reader.method, carriers, counted, reader.subkeys), []).append(reader)
    for members in groups.values():
        drawn = sorted(reader.claim.subkeys[0].stream("order").bytes(32) for reader in members)
        seed = hashlib.sha256(b"".join(drawn)).digest()
        for reader in members:
            reader.order = seed if len(members) > 1 else None
            reader.stops = RADAR


def key_name(folder: str, folders: Sequence[str]) -> str:
    """As much of the end of a key folder's path as tells it from the others."""
    parts = Path(folder).parts
    others = [Path(other).parts for other in folders if other != folder]
    for count in range(1, len(parts)):
        if all(other[-count:] != parts[-count:] for other in others):
            return "/".join(parts[-count:])
    return folder
