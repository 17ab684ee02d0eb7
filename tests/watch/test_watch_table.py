"""The files of a watch: torn lines, full disks, killed processes."""

import errno
import json
import os
import random
import signal
import subprocess

import pytest

from hf_watermark.serialization import InvalidInput
from hf_watermark.watch import ListedRepo, Watch
from hf_watermark.watch.table import Batch, Table


def row(**fields):
    return {
        "repo": "a/b",
        "revision": "0" * 40,
        "outcome": "look",
        "requests": 1,
        "bytes": 2,
        "size": 3,
        "tries": 0,
    } | fields


@pytest.mark.parametrize("torn", [b'{"place": 1, "ro', b"\x00\xff", b'{"place": 1, "rows": []}'])
def test_a_torn_line_is_a_repository_that_was_not_read(tmp_path, torn):
    table = Table(tmp_path)
    table.add(Batch(1, (ListedRepo("a/b"), ListedRepo("c/d"))))
    table.append(1, "w", 0, [row()])
    with (table.batch_folder(1) / "rows-w.jsonl").open("ab") as file:
        file.write(torn)

    assert set(table.read_rows(1)) == {0}
    table.append(1, "w", 1, [row(repo="c/d")])
    assert {place: rows[0]["repo"] for place, rows in table.read_rows(1).items()} == {0: "a/b", 1: "c/d"}


def test_a_full_disk_loses_no_line(tmp_path, monkeypatch):
    table = Table(tmp_path)
    table.add(Batch(1, (ListedRepo("a/b"),)))
    table.append(1, "w", 0, [row()])
    real = os.write

    def half(descriptor, data):
        real(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space"):
        table.append(1, "w", 1, [row()])
    monkeypatch.undo()

    assert set(table.read_rows(1)) == {0}
    table.append(1, "w", 1, [row()])
    assert set(table.read_rows(1)) == {0, 1}


def test_a_watch_on_a_full_disk_ends_and_goes_on_later(crowd, settings, monkeypatch):
    appended = []
    real = Table.append

    def full(self, number, worker, place, rows):
        appended.append(place)
        if len(appended) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, number, worker, place, rows)

    monkeypatch.setattr(Table, "append", full)
    with pytest.raises(OSError, match="No space"):
        Watch(settings()).once()
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", crowd.url)

    from client import connect

    connect(monkeypatch, crowd.url, settings().folder / "home")
    watch = Watch(settings())
    watch.once()
    rows = watch.table.looks().to_pylist()
    assert len({item["repo"] for item in rows}) == 30
    looks = [item["look"] for item in rows if item["look"]]
    assert looks == list(range(1, len(looks) + 1))


def test_a_batch_is_entered_once(tmp_path):
    table = Table(tmp_path)
    table.enter(1, [row(look=1, discoveries=0, key="k", alpha=0.1, alarm=False, discovery=False)])

    with pytest.raises(FileExistsError):
        table.enter(1, [row()])
    assert table.counted() == (1, 0) and table.seen() == {"a/b": "0" * 40}


def test_what_was_not_reached_is_tried_again_until_it_is(tmp_path):
    table = Table(tmp_path)
    table.enter(1, [row(outcome="unreached"), row(repo="c/d", outcome="unreached", tries=2)])
    assert table.unreached() == {"a/b": 1, "c/d": 3} and table.seen() == {}

    table.enter(2, [row(outcome="discarded")])
    assert table.unreached() == {"c/d": 3} and set(table.seen()) == {"a/b"}


def test_two_watches_do_not_write_into_one_folder(crowd, settings):
    with Watch(settings()).table.writing(), pytest.raises(InvalidInput, match="another watch"):
        Watch(settings()).once()


def test_killed_at_random_moments_nothing_is_lost_and_nothing_counted_twice(crowd, command, finished, tmp_path):
    whole = finished(crowd, tmp_path / "whole", "--batch", "10")
    assert whole.returncode == 1, whole.stderr
    rng, kills = random.Random(3), 0
    line, env = command(crowd, tmp_path / "torn", "--batch", "10")
    for _ in range(6):
        process = subprocess.Popen(
            line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(timeout=rng.uniform(3.0, 8.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    done = finished(crowd, tmp_path / "torn", "--batch", "10")

    assert done.returncode in (0, 1), done.stderr
    assert kills >= 2
    assert told(tmp_path / "whole") == told(tmp_path / "torn")
    alarms = sorted(path.name for path in (tmp_path / "torn" / "alarms").glob("*.sent"))
    assert (
        len(alarms) == 4
        and json.loads((tmp_path / "torn" / "alarms" / alarms[0]).with_suffix(".json").read_text())["alarm"]
    )


def told(output):
    names = ("repo", "revision", "outcome", "key", "look", "log2_p", "log2_e", "digest", "alarm", "discovery")
    return [tuple(item[name] for name in names) for item in Table(output).looks().to_pylist()]


def test_the_same_table_from_one_and_from_two_workers(crowd, finished, tmp_path):
    for workers in ("1", "2"):
        done = finished(crowd, tmp_path / workers, "--workers", workers)
        assert done.returncode == 1, done.stderr

    assert told(tmp_path / "1") == told(tmp_path / "2")


def test_the_same_table_from_ray(crowd, finished, tmp_path):
    pytest.importorskip("ray")
    for name, arguments in (("one", []), ("ray", ["--executor", "ray", "--workers", "2"])):
        done = finished(crowd, tmp_path / name, *arguments)
        assert done.returncode == 1, done.stderr

    assert told(tmp_path / "one") == told(tmp_path / "ray")
