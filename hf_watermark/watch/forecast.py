"""
What a watch will cost: requests, bytes, hours and false alarms, from measured costs of one repository.

The costs are those of the watch's own table where it has looked at enough repositories, else those of the benchmark over 10,000 generated ones
(`examples/benchmarks/watch.py`), which ship in `measured.json`. How many of the Hub's repositories fit a key is no measurement: nobody has
counted them, and the share stands among the inputs as an assumption.
"""

from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..serialization import InvalidInput, read_json
from .budget import SpentForEver
from .listing import ListedRepo, pages
from .report import repositories_of
from .settings import WatchSettings
from .table import DISCARDED, LOOK, Table


MEASURED = Path(__file__).with_name("measured.json")
# Of the watch's own repositories, from which on they say more than the benchmark.
ENOUGH = 200
# Of a list that is not read to its end.
MOST_PAGES = 40
SHARES = ("matching", "read_share")


@dataclass(frozen=True)
class ScanInputs:
    """
    What a forecast rests on; costs are means over repositories.

    Args:
        repos (`int`):
            Repositories that are listed.
        keys (`int`):
            Keys looked for; one read serves all of one layout.
        matching (`float`):
            Share of repositories whose shapes fit a key, so that carriers are read. An assumption.
        keys_each (`float`):
            Keys that fit such a repository, at most `keys`.
        page (`int`):
            Repositories on a page of the list.
        header_requests, header_bytes, header_seconds (`float`):
            Of one whose headers discard it. Seconds are those of a core.
        header_key_seconds (`float`):
            Of each further key, on headers that were read.
        read_requests, read_bytes, read_seconds (`float`):
            Of one whose carriers are read, under one key.
        key_seconds (`float`):
            Of each further key of the same layout, on what was read.
        requests_per_second (`float`):
            Of all workers behind one address.
        addresses (`int`):
            Machines with an address of their own.
        workers (`int`):
            Cores.
        budget (`float`):
            Expected number of false alarms of all looks ever.
        measured (`str`):
            Where the costs come from.
    """

    repos: int = 2_500_000
    keys: int = 50
    matching: float = 0.02
    keys_each: float = 1.0
    page: int = 500
    header_requests: float = 0.0
    header_bytes: float = 0.0
    header_seconds: float = 0.0
    header_key_seconds: float = 0.0
    read_requests: float = 0.0
    read_bytes: float = 0.0
    read_seconds: float = 0.0
    key_seconds: float = 0.0
    requests_per_second: float = 10.0
    addresses: int = 1
    workers: int = 1
    budget: float = 0.01
    measured: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "measured":
                continue
            free = field.name.split("_")[0] in ("header", "read", "key")
            if not (0 <= value <= 1 if field.name in SHARES else 0 <= value < 1e18 if free else 0 < value < 1e18):
                raise InvalidInput(
                    f"`{field.name}` is {value}: choose {'a share in [0, 1]' if field.name in SHARES else 'a positive number'}"
                )


@cache
def shipped() -> dict[str, Any]:
    """The costs that the benchmark measured."""
    return read_json(MEASURED, allow_floats=True)


def with_measured_costs(**given: Any) -> ScanInputs:
    """Inputs with the benchmark's costs, and what is given."""
    said = shipped()
    return ScanInputs(**{**said["costs"], "measured": said["measured"], **given})


def forecast(inputs: ScanInputs) -> dict[str, Any]:
    """
    Requests, bytes and hours by stage, and the false alarms that alpha spending allows.

    Requests and processor work overlap within a stage; the slower one decides.
    """
    fitting = inputs.repos * inputs.matching
    looks = fitting * min(inputs.keys_each, inputs.keys)
    further = max(0.0, looks - fitting)
    stages = [
        _stage("the list of repositories", inputs.repos / inputs.page, 700.0 * inputs.page, 0.0, inputs),
        _stage(
            "headers of those that do not fit",
            (inputs.repos - fitting) * inputs.header_requests,
            inputs.header_bytes / max(1e-9, inputs.header_requests),
            (inputs.repos - fitting) * (inputs.header_seconds + (inputs.keys - 1) * inputs.header_key_seconds),
            inputs,
        ),
        _stage(
            "headers and carriers of those that fit, once for all keys",
            fitting * inputs.read_requests,
            inputs.read_bytes / max(1e-9, inputs.read_requests),
            fitting * inputs.read_seconds + further * inputs.key_seconds,
            inputs,
        ),
    ]
    count = max(1, round(looks))
    return {
        "inputs": asdict(inputs),
        "stages": stages,
        "total": {name: sum(stage[name] for stage in stages) for name in ("requests", "bytes", "core_hours", "hours")},
        "looks": looks,
        "false_alarms": {"expected, of all looks ever, at most": inputs.budget},
        "last_look_needs_p": inputs.budget * SpentForEver().gamma(count),
    }


def _stage(name: str, requests: float, bytes_each: float, cpu_seconds: float, inputs: ScanInputs) -> dict[str, Any]:
    waiting = requests / (inputs.requests_per_second * inputs.addresses)
    working = cpu_seconds / inputs.workers
    return {
        "stage": name,
        "requests": requests,
        "bytes": requests * bytes_each,
        "core_hours": cpu_seconds / 3600,
        "hours": max(waiting, working) / 3600,
        "limited_by": "requests" if waiting >= working else "processors",
    }


def forecast_of(settings: WatchSettings) -> dict[str, Any]:
    """A forecast of the next run of a watch: its list is asked for (at most [`MOST_PAGES`] pages), and nothing is read or entered."""
    settings = settings.continued()
    table = Table(settings.folder)
    last = table.last
    seen = table.seen()
    until = (table.batch(last).listing if last else "") or settings.since
    repos: list[ListedRepo] = []
    complete = False
    for number, page in enumerate(pages(settings, until), start=1):
        repos += [repo for repo in page.repos if seen.get(repo.repo) != repo.revision or not repo.revision]
        complete = not page.cursor
        if number == MOST_PAGES:
            break
    inputs = costs_measured(table) or with_measured_costs()
    from .keys import open_keys
    from .looking import Looker  # torch, which a list does not need

    looker = Looker(open_keys(settings), settings.largest)
    asked = [repo for repo in repos if looker.discarded_by_list(repo) is None]
    inputs = replace(
        inputs,
        repos=max(1, len(asked)),
        keys=len(settings.keys),
        page=settings.batch,
        requests_per_second=settings.rate,
        workers=settings.workers,
        budget=settings.budget,
    )
    listed = {"listed": len(repos), "discarded_by_the_list": len(repos) - len(asked), "list_complete": complete}
    return forecast(inputs) | {"list": listed}


def costs_measured(table: Table) -> ScanInputs | None:
    """Means over the repositories in a table; `None` where they are too few."""
    rows = repositories_of(table)
    read = [row for row in rows if row["outcome"] == LOOK and not row["aligned"]]
    headers = [row for row in rows if row["outcome"] == DISCARDED and row["requests"]]
    if len(read) + len(headers) < ENOUGH or not read or not headers:
        return None

    def mean(rows: list[dict[str, Any]], name: str) -> float:
        return sum(row[name] for row in rows) / len(rows)

    costs: dict[str, Any] = {
        f"{stage}_{name}": mean(own, name)
        for stage, own in (("read", read), ("header", headers))
        for name in ("requests", "bytes", "seconds")
    }
    share = len(read) / (len(read) + len(headers))
    looks = table.looks(["outcome"]).column("outcome").to_pylist().count(LOOK)
    return ScanInputs(
        **costs,
        matching=share,
        keys_each=max(1.0, looks / len(read)),
        measured=f"{len(rows)} repositories of {table.folder}",
    )
