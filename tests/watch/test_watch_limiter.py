"""One rate for all workers, and what hosts ask for."""

import subprocess
import sys
import time

import huggingface_hub
import pytest

from hf_watermark.watch.limiter import LONGEST_PAUSE, Limiter, asked_pause


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def test_requests_keep_their_distance(tmp_path, clock):
    limiter = Limiter(tmp_path, rate=4.0, clock=clock, sleep=clock.sleep)
    first = clock.now
    for _ in range(40):
        limiter.wait("hub")
    # A second's worth may be caught up with at once.
    assert 40 / 4.0 - 1.5 <= clock.now - first <= 40 / 4.0
    assert limiter.requests == 40


def test_workers_share_one_rate_and_hosts_do_not(tmp_path, clock):
    one, two = (Limiter(tmp_path, rate=2.0, clock=clock, sleep=clock.sleep) for _ in range(2))
    start = clock.now
    for _ in range(10):
        one.wait("hub")
        two.wait("hub")
    assert clock.now - start >= 8.5
    before = clock.now
    one.wait("another host")
    assert clock.now == before


def test_a_pause_holds_for_everybody_and_has_an_end(tmp_path, clock):
    one, two = (Limiter(tmp_path, rate=100.0, clock=clock, sleep=clock.sleep) for _ in range(2))
    one.pause("hub", 30)
    start = clock.now
    two.wait("hub")
    assert clock.now - start == pytest.approx(30)
    one.pause("hub", 1e9)
    start = clock.now
    two.wait("hub")
    assert clock.now - start <= LONGEST_PAUSE + 1


@pytest.mark.parametrize("garbage", ["", "nonsense", "nan\n", "1e300"])
def test_a_torn_file_stops_nobody_for_long(tmp_path, clock, garbage):
    limiter = Limiter(tmp_path, rate=1.0, clock=clock, sleep=clock.sleep)
    limiter.wait("hub")
    path = next(path for path in tmp_path.iterdir() if not path.name.endswith(".lock"))
    path.write_text(garbage)
    start = clock.now
    limiter.wait("hub")
    assert clock.now - start <= LONGEST_PAUSE


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"retry-after": "17"}, 17),
        (503, {"retry-after": "2"}, 2),
        (200, {"retry-after": "17"}, 0),
        (429, {}, 0),
        (429, {"retry-after": "soon"}, 0),
        (200, {"ratelimit": '"api";r=0;t=55', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}, 55),
        (200, {"ratelimit": '"api";r=3;t=55'}, 0),
    ],
)
def test_what_a_host_asks_for(status, headers, seconds):
    assert asked_pause(status, headers) == seconds


def test_a_date_is_a_time_to_wait_for():
    from email.utils import formatdate

    assert 50 < asked_pause(429, {"retry-after": formatdate(time.time() + 60, usegmt=True)}) <= 60


def test_every_request_of_the_client_is_counted_redirects_too(many, copies, tmp_path):
    many.add_marked("thief/plain", copies.folder / "plain", 1)
    limiter = Limiter(tmp_path, rate=1e6)
    limiter.install()
    from hf_watermark.suspects.remote import RemoteSafetensors

    many.forget()
    weights = RemoteSafetensors("thief/plain")
    assert weights.requests == 3 and limiter.requests >= len(many.requests) >= 3
    huggingface_hub.close_session()


def test_processes_share_one_rate(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom hf_watermark.watch.limiter import Limiter\n"
        "limiter = Limiter(Path(sys.argv[1]), 40.0)\nfor _ in range(60):\n    limiter.wait('hub')\nprint(time.time())"
    )
    Limiter(tmp_path, 40.0).wait("hub")
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [float(process.communicate()[0]) for process in processes]
    written = float(next(path for path in tmp_path.iterdir() if not path.name.endswith(".lock")).read_text())

    # 120 moments were handed out, none of them twice: the last one lies 120 steps after the first, but for the second that may be caught up with.
    assert written >= max(ends) - 0.1 and max(ends) - min(ends) < 3.0
