"""
One rate for all workers: whoever wants to ask a host takes the next free moment from a file in the output folder, under a lock.

What a host says goes before the rate: after `Retry-After`, or where it says that nothing is left of its quota, nobody asks until then. The
waiting is done in the HTTP client that `huggingface_hub` shares within a process, so redirects and retries are counted as well.
"""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import huggingface_hub
from filelock import FileLock
from huggingface_hub.utils import parse_ratelimit_headers
from huggingface_hub.utils._http import default_client_factory

from .settings import short_digest


# Nobody waits longer because a host says so: an hour, and then it is asked again.
LONGEST_PAUSE = 3600.0
# Unused moments that may be caught up with at once, in seconds of the rate.
BURST = 1.0


class Limiter:
    """
    A token bucket per host that processes on one file system share.

    Args:
        folder (`Path`):
            Where the files of the hosts lie.
        rate (`float`):
            Requests per second.
        clock, sleep (`Callable`):
            For tests.
    """

    def __init__(
        self,
        folder: Path,
        rate: float,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.rate, self.clock, self.sleep = folder, rate, clock, sleep
        self.requests = 0

    def wait(self, host: str) -> float:
        """Takes the next free moment of a host and sleeps until then; says how long that was."""
        step = 1 / self.rate
        path, lock = self._file(host)
        with lock:
            now = self.clock()
            free = max(self._read(path), now - BURST)
            self._write(path, free + step)
        self.requests += 1
        pause = max(0.0, free - now)
        if pause:
            self.sleep(pause)
        return pause

    def pause(self, host: str, seconds: float) -> None:
        """Nobody asks this host for so long."""
        path, lock = self._file(host)
        with lock:
            self._write(path, max(self._read(path), self.clock() + min(seconds, LONGEST_PAUSE)))

    def _file(self, host: str) -> tuple[Path, FileLock]:
        path = self.folder / f"host-{short_digest(host)}"
        return path, FileLock(f"{path}.lock")

    def _read(self, path: Path) -> float:
        try:
            return min(float(path.read_text()), self.clock() + LONGEST_PAUSE)
        except (OSError, ValueError):  # new, or its writer was killed: as if nobody had asked yet
            return 0.0

    def _write(self, path: Path, moment: float) -> None:
        path.write_text(f"{moment:.6f}\n")

    def install(self) -> None:
        """Makes every request of `huggingface_hub` in this process wait its turn."""

        def make() -> Any:
            client = default_client_factory()
            hooks = client.event_hooks
            hooks["request"] = [self._before, *hooks["request"]]
            hooks["response"] = [*hooks["response"], self._after]
            client.event_hooks = hooks
            return client

        huggingface_hub.set_client_factory(make)

    def _before(self, request: Any) -> None:
        self.wait(request.url.host)

    def _after(self, response: Any) -> None:
        seconds = asked_pause(response.status_code, response.headers)
        if seconds:
            self.pause(response.request.url.host, seconds)


def asked_pause(status: int, headers: Any) -> float:
    """Seconds that a host asks not to be asked for; 0 where it asks nothing."""
    quota = parse_ratelimit_headers(headers)
    if quota is not None and quota.remaining == 0:
        return float(quota.reset_in_seconds)
    if status not in (429, 503):
        return 0.0
    said = (headers.get("retry-after") or "").strip()
    if re.fullmatch(r"\d{1,9}", said):
        return float(said)
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
