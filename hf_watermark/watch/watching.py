"""The watch itself: list, look, number the looks, say what alarms. Every step can be killed and is taken up where it was."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from ..suspects.errors import HubError
from .budget import Budget
from .listing import ListedRepo, pages
from .settings import WatchSettings, read_moment, scrubbed
from .table import LOOK, UNREACHED, Batch, Table


# A listing goes down to this long before the newest change that the last one saw: the Hub's index lags behind its repositories.
OVERLAP = timedelta(hours=1)
# A repository that could not be reached is tried again by so many runs.
MOST_TRIES = 5


@dataclass(frozen=True)
class Summary:
    """
    What one run came to.

    Args:
        batches, repositories, looks (`int`):
            Of this run.
        looks_ever (`int`):
            Of the folder.
        requests, bytes (`int`):
            Of this run.
        outcomes (`dict[str, int]`):
            Repositories by how they ended.
        alarms (`list[dict]`):
            Rows of the table that alarm, of this run.
    """

    batches: int
    repositories: int
    looks: int
    looks_ever: int
    requests: int
    bytes: int
    outcomes: dict[str, int]
    alarms: list[dict[str, Any]]


class Watch:
    """
    A watch over the Hub.

    Args:
        settings ([`WatchSettings`]):
            What to do; saved into the output folder.
        run (`Callable`, *optional*):
            Has a batch looked at: `run(settings, number)`. By default [`~watch.engine.run_batch`].
        tell (`Callable`, *optional*):
            Gets a line of progress now and then.
        alarm (`Callable`, *optional*):
            Called with the number of each entered batch: the place to send what alarms.

    Example:

    ```python
    from hf_watermark.watch import Watch, WatchSettings

    summary = Watch(WatchSettings(("/home/me/keys/my-model",), "/home/me/watch", author="somebody")).once()
    ```
    """

    def __init__(
        self,
        settings: WatchSettings,
        run: Callable[[WatchSettings, int], None] | None = None,
        tell: Callable[[str], None] = lambda text: None,
        alarm: Callable[[int], None] = lambda number: None,
    ):
        if run is None:
            from .engine import run_batch

            run = run_batch
        self.settings, self.run, self.tell, self.alarm = settings.continued(), run, tell, alarm
        self.table = Table(settings.folder)

    def once(self) -> Summary:
        """
        Looks at everything new and changed since the last time, and ends.

        Raises:
            [`~suspects.HubError`]: when the Hub cannot be asked for its list.
            [`~serialization.InvalidInput`]: when another watch writes into the folder.
            `OSError`: when the disk is full; what was entered before stays, and the next run goes on.
        """
        with self.table.writing():
            self.settings.save()
            numbers = []
            for batch in self._batches():
                self.tell(f"batch {batch.number}: {len(batch.repos)} repositories")
                self.run(self.settings, batch.number)
                self.enter(batch)
                self.alarm(batch.number)
                numbers.append(batch.number)
            return self.summary(numbers)

    def _batches(self) -> Iterator[Batch]:
        """The interrupted one, then what the interrupted listing has left, those to try again, and what is new."""
        last = self.table.last
        if last and not self.table.is_done(last):
            yield self.table.batch(last)
        before = self.table.batch(last) if last else None
        if before is not None and before.cursor:
            yield from self._listed(before.until, before.cursor, before.listing)
        yield from self._again()
        until = before.listing if before is not None else ""
        if until:
            until = (read_moment(until, "listing") - OVERLAP).isoformat()
        # A later `since` than the last listing's would leave a gap, an earlier one nothing new: repositories seen are left out by their commit.
        yield from self._listed(until or self.settings.since, "", "")

    def _listed(self, until: str, cursor: str, listing: str) -> Iterator[Batch]:
        seen = self.table.seen()
        try:
            for page in pages(self.settings, until, cursor):
                if not listing:
                    listing = max((repo.modified for repo in page.repos), default="")
                new = tuple(repo for repo in page.repos if not repo.revision or seen.get(repo.repo) != repo.revision)
                if new:
                    seen |= {repo.repo: repo.revision for repo in new}
                    yield self._add(new, listing, until, page.cursor)
        except HubError:
            if not cursor:
                raise
            # The place where an earlier run stopped is no longer known to the server: the list is read again from its start.
            yield from self._listed(until, "", "")

    def _again(self) -> Iterator[Batch]:
        """Those that could not be reached, with the commit that they have now."""
        due = [ListedRepo(name, tries=tries) for name, tries in self.table.unreached().items() if tries < MOST_TRIES]
        last = self.table.last
        before = self.table.batch(last) if last else None
        for start in range(0, len(due), self.settings.batch):
            some = tuple(due[start : start + self.settings.batch])
            if before is None:
                return
            yield self._add(some, before.listing, before.until, before.cursor)

    def _add(self, repos: tuple[ListedRepo, ...], listing: str, until: str, cursor: str) -> Batch:
        return self.table.add(Batch(self.table.last + 1, repos, listing, until, cursor))

    def enter(self, batch: Batch) -> None:
        """Numbers and decides the looks of a batch, in the order of the list and of the keys, and enters them."""
        found = self.table.read_rows(batch.number)
        budget = Budget(self.settings.budget, self.settings.fdr, *self.table.counted())
        order = {folder: place for place, folder in enumerate(self.settings.keys)}
        rows = []
        for place, repo in enumerate(batch.repos):
            own = found.get(place) or [_lost(repo)]
            for row in sorted(own, key=lambda row: order.get(row.get("key", ""), 0)):
                row = {"place": place} | row
                if row["outcome"] == LOOK:
                    decision = budget.decide(row["log2_p"], row["log2_e"])
                    row |= {
                        name: getattr(decision, name)
                        for name in ("look", "alpha", "alarm", "discovery", "discoveries")
                    }
                rows.append(row)
        self.table.enter(batch.number, rows)

    def summary(self, numbers: list[int]) -> Summary:
        """Of the batches with these numbers."""
        rows: list[dict[str, Any]] = []
        if numbers:
            rows = [row for row in self.table.looks(first=min(numbers)).to_pylist() if row["batch"] in numbers]
        repositories = {(row["batch"], row["place"]): row for row in rows}
        outcomes: dict[str, int] = {}
        for row in repositories.values():
            outcomes[row["outcome"]] = outcomes.get(row["outcome"], 0) + 1
        return Summary(
            len(numbers),
            len(repositories),
            sum(row["outcome"] == LOOK for row in rows),
            self.table.counted()[0],
            sum(row["requests"] for row in repositories.values()),
            sum(row["bytes"] for row in repositories.values()),
            outcomes,
            [row for row in rows if row["alarm"] or row["discovery"]],
        )


def _lost(repo: ListedRepo) -> dict[str, Any]:
    return {
        "repo": repo.repo, "revision": repo.revision, "modified": repo.modified, "outcome": UNREACHED, "requests": 0, "bytes": 0, "size": 0,
        "reason": "the worker that looked at it was lost; it is tried again", "seconds": 0.0, "digest": "", "tries": repo.tries,
    }  # fmt: skip


def one_line(row: Mapping[str, Any]) -> str:
    """An alarm for a terminal."""
    kinds = " and ".join(word for word, said in (("alarm", row["alarm"]), ("discovery", row["discovery"])) if said)
    return scrubbed(
        f"{kinds}: {row['repo']}@{row['revision'][:12]} carries the mark of {row['key']} (log2 p = {row['log2_p']:.1f}, look {row['look']}; "
        "self-check)"
    )


def watch_repos(settings: WatchSettings, repos: list[ListedRepo], watch: Watch | None = None) -> Summary:
    """Looks at these repositories now, whatever the list says: what a webhook names."""
    watch = watch or Watch(settings)
    with watch.table.writing():
        watch.settings.save()
        last = watch.table.last
        if last and not watch.table.is_done(last):
            unfinished = watch.table.batch(last)
            watch.run(watch.settings, last)
            watch.enter(unfinished)
            watch.alarm(last)
        before = watch.table.batch(last) if last else None
        said = ("", "", "") if before is None else (before.listing, before.until, before.cursor)
        batch = watch._add(tuple(replace(repo, tries=0) for repo in repos), *said)
        watch.run(watch.settings, batch.number)
        watch.enter(batch)
        watch.alarm(batch.number)
        return watch.summary([batch.number])
