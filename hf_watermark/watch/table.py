"""
The table of looks: one parquet file per batch, each written completely or not at all, and never changed.

Three kinds of files say all that a watch knows, so that it can be killed anywhere:

* `batches/000007/batch.json`: the repositories of a batch, where the listing goes on, and what began it; written before anything is read.
* `batches/000007/rows-3.jsonl`: what worker 3 has read so far, a line per repository. A half-written last line is one that was not read.
* `looks/000007.parquet`: the same in the order of the list with the looks numbered and decided. Where this file exists, the batch is done.

Numbers are only given in the last step, which is the appearance of one file: no look is counted twice, whatever happens before or after it.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ..serialization import InvalidInput, write_bytes_atomic
from .listing import ListedRepo


# How a repository ended. Only a `look` is a test, and only a test is numbered and charged.
LOOK, DISCARDED, SKIPPED, UNREADABLE, UNREACHED, GONE = (
    "look",
    "discarded",
    "skipped",
    "unreadable",
    "unreached",
    "gone",
)
OUTCOMES = (LOOK, DISCARDED, SKIPPED, UNREADABLE, UNREACHED, GONE)

SCHEMA = pa.schema(
    [
        ("batch", pa.int64()),
        ("place", pa.int64()),
        ("repo", pa.string()),
        ("revision", pa.string()),
        ("modified", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("requests", pa.int64()),
        ("bytes", pa.int64()),
        ("size", pa.int64()),
        ("seconds", pa.float64()),
        ("digest", pa.string()),
        ("tries", pa.int64()),
        ("key", pa.string()),
        ("log2_p", pa.float64()),
        ("log2_e", pa.float64()),
        ("matches", pa.int64()),
        ("trials", pa.int64()),
        ("verdict", pa.string()),
        ("aligned", pa.bool_()),
        ("look", pa.int64()),
        ("alpha", pa.float64()),
        ("alarm", pa.bool_()),
        ("discovery", pa.bool_()),
        ("discoveries", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Batch:
    """
    Some repositories that are read and entered together.

    Args:
        number (`int`):
            From 1.
        repos (`tuple[ListedRepo, ...]`):
            In the order of the list.
        listing (`str`):
            Date up to which the listing that this batch belongs to goes: the newest change that it saw.
        until (`str`):
            Date down to which that listing goes.
        cursor (`str`):
            Where it goes on; empty where it is complete.
    """

    number: int
    repos: tuple[ListedRepo, ...]
    listing: str = ""
    until: str = ""
    cursor: str = ""


class Table:
    """
    The files of one output folder.

    Args:
        folder (`Path`):
            The output folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("batches", "looks", "alarms"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """
        Only one watch enters looks into a folder.

        Raises:
            [`~serialization.InvalidInput`]: when another one runs.
        """
        lock = FileLock(self.folder / "watch.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InvalidInput(
                f"{self.folder}: another watch writes here; wait for it, or give another --output"
            ) from None
        try:
            yield
        finally:
            lock.release()

    # Batches

    def batch_folder(self, number: int) -> Path:
        return self.folder / "batches" / f"{number:06d}"

    def add(self, batch: Batch) -> Batch:
        """Writes a batch down before anything of it is read."""
        folder = self.batch_folder(batch.number)
        folder.mkdir(parents=True, exist_ok=True)
        said = vars(batch) | {"repos": [repo.to_dict() for repo in batch.repos]}
        write_bytes_atomic(folder / "batch.json", json.dumps(said).encode())
        return batch

    def batch(self, number: int) -> Batch:
        said = json.loads((self.batch_folder(number) / "batch.json").read_bytes())
        return Batch(**said | {"repos": tuple(map(ListedRepo.from_dict, said["repos"]))})

    @property
    def last(self) -> int:
        """Number of the last batch that was written down; 0 where there is none."""
        found = [int(path.parent.name) for path in (self.folder / "batches").glob("*/batch.json")]
        return max(found, default=0)

    def looks_file(self, number: int) -> Path:
        return self.folder / "looks" / f"{number:06d}.parquet"

    def is_done(self, number: int) -> bool:
        return self.looks_file(number).exists()

    # Rows of workers

    def read_rows(self, number: int) -> dict[int, list[dict[str, Any]]]:
        """What all workers have read of a batch: rows by place in the list."""
        found: dict[int, list[dict[str, Any]]] = {}
        for path in sorted(self.batch_folder(number).glob("rows-*.jsonl")):
            for line in _whole_lines(path):
                found.setdefault(line["place"], line["rows"])
        return found

    def append(self, number: int, worker: str, place: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """
        One repository's rows, at once and on the disk before this returns.

        Raises:
            `OSError`: when the disk is full; nothing that stands in the file is lost.
        """
        path = self.batch_folder(number) / f"rows-{worker}.jsonl"
        line = json.dumps({"place": place, "rows": list(rows)}).encode() + b"\n"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            end = _end_of_whole_lines(descriptor)
            os.ftruncate(descriptor, end)
            os.lseek(descriptor, end, os.SEEK_SET)
            written = 0
            while written < len(line):
                written += os.write(descriptor, line[written:])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # Looks

    def enter(self, number: int, rows: Iterable[Mapping[str, Any]]) -> Path:
        """The finished rows of a batch, as one file that appears at once."""
        table = pa.Table.from_pylist([{"batch": number} | dict(row) for row in rows], schema=SCHEMA)
        target = BytesIO()
        pq.write_table(table, target, compression="zstd")
        path = self.looks_file(number)
        write_bytes_atomic(path, target.getvalue(), overwrite=False)
        return path

    def looks(self, columns: Sequence[str] | None = None, first: int = 1) -> pa.Table:
        """All rows of the batches from number `first` on, in their order."""
        files = [path for path in sorted((self.folder / "looks").glob("*.parquet")) if int(path.stem) >= first]
        parts = [pq.read_table(path, columns=list(columns) if columns else None) for path in files]
        if not parts:
            return SCHEMA.empty_table().select(list(columns)) if columns else SCHEMA.empty_table()
        return pa.concat_tables(parts)

    def counted(self) -> tuple[int, int]:
        """Looks and discoveries so far."""
        for path in sorted((self.folder / "looks").glob("*.parquet"), reverse=True):
            table = pq.read_table(path, columns=["look", "discoveries"])
            numbers = [
                (look, found)
                for look, found in zip(*map(pa.ChunkedArray.to_pylist, table.columns), strict=True)
                if look
            ]
            if numbers:
                return numbers[-1]
        return 0, 0

    def seen(self) -> dict[str, str]:
        """The revision at which each repository was last looked at, whatever came of it, if it was reached."""
        table = self.looks(["repo", "revision", "outcome"])
        names, revisions, outcomes = (column.to_pylist() for column in table.columns)
        return {
            name: revision
            for name, revision, outcome in zip(names, revisions, outcomes, strict=True)
            if outcome != UNREACHED
        }

    def unreached(self) -> dict[str, int]:
        """Repositories that could not be reached when they were last tried, and how often that was so."""
        table = self.looks(["repo", "outcome", "tries"])
        found: dict[str, int] = {}
        for name, outcome, tries in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if outcome == UNREACHED:
                found[name] = tries + 1
            else:
                found.pop(name, None)
        return found


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last line break is not whole
        try:
            said = json.loads(line)
        except ValueError:  # a torn line that something was written behind; its repository is read again
            continue
        if isinstance(said, dict) and {"place", "rows"} <= set(said):
            yield said


def _end_of_whole_lines(descriptor: int) -> int:
    """Where the last whole line of a file ends."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65_536)
        os.lseek(descriptor, start, os.SEEK_SET)
        block = os.read(descriptor, end - start)
        place = block.rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0
