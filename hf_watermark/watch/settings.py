"""What a watch is told: kept beside its table, so that whoever goes on, or works for it on another machine, does the same."""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..serialization import InvalidInput, read_json, write_json_atomic


SETTINGS_FILE = "watch.json"
EXECUTORS = ("local", "ray", "slurm")
# Another value of one of these would make another guarantee of the looks that were taken already.
FIXED = ("keys", "budget", "fdr")


@dataclass(frozen=True)
class WatchSettings:
    """
    Everything that decides what a watch does. Keys stand in it as folders, tokens do not at all; the address of a webhook may be a secret, so the file
    is private.

    Args:
        keys (`tuple[str, ...]`):
            Key folders, absolute.
        output (`str`):
            Folder of the table of looks, absolute; on a file system that all workers see.
        references (`dict[str, str]`):
            Key folder to the folder of the owner's model as it was when that key was made, for suspects whose channels were reordered.
        passphrase_file (`str`):
            Private file with the passphrase of the keys; empty where they have none.
        since (`str`):
            Repositories that were last changed before this date are left out (ISO 8601, UTC); empty for all.
        filters (`tuple[str, ...]`), author (`str`), search (`str`):
            What the Hub is asked to list, as in `HfApi.list_models`.
        budget (`float`):
            Bound of the expected number of false alarms, for ever.
        fdr (`float`):
            Bound of the false discovery rate among discoveries by e-values.
        executor (`str`):
            `local`, `ray` or `slurm`.
        workers (`int`):
            Tasks that run at once.
        rate (`float`):
            Requests per second of all workers together, to one host.
        batch (`int`):
            Repositories that are listed, read and entered together, at most 1,000 (a page of the Hub's list).
        largest (`float`):
            Repositories with more parameters than this many times the largest key's model are left out.
        webhook (`str`):
            Address that alarms are posted to.
        slurm (`dict[str, str]`):
            `partition` and `time` for Slurm.

    Raises:
        [`~serialization.InvalidInput`]: for a value that makes no sense, with the name of the field.
    """

    keys: tuple[str, ...]
    output: str
    references: dict[str, str] | None = None
    passphrase_file: str = ""
    since: str = ""
    filters: tuple[str, ...] = ()
    author: str = ""
    search: str = ""
    budget: float = 0.01
    fdr: float = 0.05
    executor: str = "local"
    workers: int = 1
    rate: float = 10.0
    batch: int = 500
    largest: float = 20.0
    webhook: str = ""
    slurm: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.keys:
            raise InvalidInput("`keys` is empty: give at least one key folder (--key DIR)")
        if len(set(self.keys)) != len(self.keys):
            raise InvalidInput("`keys` names a folder twice: it would be charged twice")
        if self.executor not in EXECUTORS:
            raise InvalidInput(f"`executor` is {self.executor!r}: choose one of {', '.join(EXECUTORS)}")
        for name, least, most in (("budget", 0.0, 1.0), ("fdr", 0.0, 1.0)):
            if not least < getattr(self, name) < most:
                raise InvalidInput(f"`{name}` is {getattr(self, name)}: choose a number between 0 and 1, such as 0.01")
        for name, most in (("workers", 10_000), ("batch", 1000)):
            if not 1 <= getattr(self, name) <= most:
                raise InvalidInput(f"`{name}` is {getattr(self, name)}: choose 1 to {most}")
        for name in ("rate", "largest"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InvalidInput(f"`{name}` is {getattr(self, name)}: choose a positive number")
        if self.since:
            read_moment(self.since, "since")
        if self.webhook and not self.webhook.startswith(("http://", "https://")):
            raise InvalidInput("`webhook` is no address: it begins with https:// (or http:// on your own machine)")
        unknown = set(self.references or {}) - set(self.keys)
        if unknown:
            raise InvalidInput(f"`references` names {sorted(unknown)[0]}, which is none of the keys")

    @property
    def folder(self) -> Path:
        return Path(self.output)

    def save(self) -> Path:
        """Writes `watch.json` into the output folder; atomic, mode 0600."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SETTINGS_FILE
        write_json_atomic(path, json.loads(json.dumps(asdict(self))), mode=0o600)
        return path

    @classmethod
    def load(cls, output: str | Path) -> "WatchSettings":
        """
        Raises:
            [`~serialization.InvalidInput`]: when the folder holds no watch, or its file was damaged.
        """
        path = Path(output) / SETTINGS_FILE
        if not path.is_file():
            raise InvalidInput(f"{output}: holds no {SETTINGS_FILE}; begin one with `hf-watermark watch --key DIR`")
        said = read_json(path, allow_floats=True)
        known = {item.name for item in fields(cls)}
        if set(said) - known:
            raise InvalidInput(f"{path}: unknown field {sorted(set(said) - known)[0]!r}; written by another version?")
        try:
            lists = {name: tuple(said.get(name, ())) for name in ("keys", "filters")}
            return cls(**{**said, **lists, "output": str(Path(output).resolve())})
        except TypeError as error:
            raise InvalidInput(f"{path}: {error}") from None

    def continued(self) -> "WatchSettings":
        """
        The same after what the folder holds was looked at.

        Raises:
            [`~serialization.InvalidInput`]: when the folder's looks were taken under another budget or by other keys.
        """
        if not (self.folder / SETTINGS_FILE).is_file():
            return self
        before = WatchSettings.load(self.output)
        for name in FIXED:
            old, new = getattr(before, name), getattr(self, name)
            if name == "keys" and set(old) <= set(new):
                continue  # further keys are further looks, which are counted on
            if old != new:
                raise InvalidInput(
                    f"`{name}` is {shown(new)}, but the looks in {self.output} were counted with {shown(old)}: give the same, or another "
                    "--output"
                )
        return replace(self, keys=(*before.keys, *(key for key in self.keys if key not in before.keys)))


def read_moment(text: str, name: str) -> datetime:
    """A date as `2026-11-22` or `2026-11-22T12:00:00Z`, UTC where it says nothing."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"`{name}` is {text[:40]!r}: write a date as 2026-11-22 or 2026-11-22T12:00:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def scrubbed(text: str) -> str:
    """A message without what may be a secret: the signatures of addresses, and tokens."""
    text = re.sub(r"(https?://[^\s'\"?]+)\?[^\s'\"]*", r"\1?...", text)
    return re.sub(r"\bhf_[A-Za-z0-9]+", "hf_...", text)
