"""`burnt.json` in the key folder: which sub-keys were shown to somebody, when and why. An entry is never removed (PROTOCOL.md §2.8)."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..serialization import InvalidInput, read_json, write_json_atomic


BURNT_FILE = "burnt.json"
SCHEMA = "hf-watermark/burnt-log/v2"
MOST_ENTRIES = 1024
_NONCE = re.compile(r"[A-Za-z0-9_.:+-]{1,96}")
_DATE = re.compile(r"20\d\d-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\dZ")


@dataclass(frozen=True)
class BurntEntry:
    """
    Args:
        subkey (`int`):
            Index into the tree.
        nonce (`str`):
            The dispute for which it was opened, or `asked:HOST` where an endpoint saw its triggers.
        date (`str`):
            `2026-11-28T12:00:00Z`.
    """

    subkey: int
    nonce: str
    date: str


def burnt_log(folder: Path) -> list[BurntEntry]:
    """
    Raises:
        [`~serialization.InvalidInput`]: when the file is there and is no such log.
    """
    path = folder / BURNT_FILE
    if not path.exists():
        return []
    document = read_json(path)
    entries = document.get("entries")
    if document.get("schema") != SCHEMA or not isinstance(entries, list) or len(entries) > MOST_ENTRIES:
        raise InvalidInput(f"{path}: no log of opened sub-keys ({SCHEMA}); restore it from a backup of the key")
    return [_entry(item, path) for item in entries]


def burnt_subkeys(folder: Path) -> list[int]:
    """Sub-keys that were opened from this key folder, or asked of an endpoint."""
    return sorted({entry.subkey for entry in burnt_log(folder)})


def burn(folder: Path, index: int, nonce: str) -> None:
    """Notes an opening in the key folder; before the sub-key is shown, so that none is forgotten."""
    nonce = re.sub(r"[^A-Za-z0-9_.:+-]", "-", nonce)[:96]
    entries = [vars(entry) for entry in burnt_log(folder)]
    if any(entry["subkey"] == index and entry["nonce"] == nonce for entry in entries):
        return
    if len(entries) == MOST_ENTRIES:
        raise InvalidInput(f"{folder / BURNT_FILE}: holds {MOST_ENTRIES} entries, which is the most; make a fresh key")
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document = {"schema": SCHEMA, "entries": [*entries, {"subkey": index, "nonce": nonce, "date": date}]}
    write_json_atomic(folder / BURNT_FILE, document, mode=0o600)


def _entry(item: Any, path: Path) -> BurntEntry:
    fits = isinstance(item, dict) and sorted(item) == ["date", "nonce", "subkey"]
    fits = fits and type(item["subkey"]) is int and 0 <= item["subkey"] < 1024
    fits = fits and isinstance(item["nonce"], str) and bool(_NONCE.fullmatch(item["nonce"]))
    if not fits or not isinstance(item["date"], str) or not _DATE.fullmatch(item["date"]):
        raise InvalidInput(f"{path}: an entry is malformed; restore the file from a backup of the key")
    return BurntEntry(**item)
