"""The files of a watch: torn lines, full disks, killed processes."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from many_repos import ManyRepos
from watch_fixtures import command_line, fill, watch_in_a_process

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


@pytest.fixture(scope="module")
def whole(copies, tmp_path_factory):
    """A Hub, and the table of a watch over it that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with ManyRepos() as hub:
        fill(hub, copies)
        done = watch_in_a_process(hub, copies, folder / "table")
        assert done.returncode == 1, done.stderr
        yield hub, told(folder / "table")


def test_killed_at_random_moments_nothing_is_lost_and_nothing_counted_twice(whole, copies, tmp_path):
    hub, expected = whole
    rng, output = random.Random(3), tmp_path / "torn"
    line, env = command_line(hub, copies, output)
    for done in (3, 14, 22):
        process = subprocess.Popen(
            line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while lines_in(output) < done and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        assert process.poll() is None, "it ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert lines_in(output) >= done

    ended = watch_in_a_process(hub, copies, output)

    assert ended.returncode in (0, 1), ended.stderr
    assert told(output) == expected
    alarms = sorted(path.name for path in (output / "alarms").glob("*.sent"))
    assert len(alarms) == 4
    assert json.loads((output / "alarms" / alarms[0]).with_suffix(".json").read_text())["alarm"]


def lines_in(output):
    return sum(path.read_bytes().count(b"\n") for path in output.glob("batches/*/rows-*.jsonl"))


def told(output):
    names = ("repo", "revision", "outcome", "key", "look", "log2_p", "log2_e", "digest", "alarm", "discovery")
    return [tuple(item[name] for name in names) for item in Table(output).looks().to_pylist()]


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_the_same_table_from_two_workers(whole, copies, tmp_path, executor):
    if executor == "ray":
        pytest.importorskip("ray")
    hub, expected = whole

    done = watch_in_a_process(
        hub, copies, tmp_path / "table", "--executor", executor, "--workers", "2", "--batch", "100"
    )

    assert done.returncode == 1, done.stderr
    assert told(tmp_path / "table") == expected
    written = b"".join(path.read_bytes() for path in (tmp_path / "table").rglob("*") if path.is_file())
    assert copies.key(0).seed.hex().encode() not in written and copies.key(0).seed not in written


def test_jobs_of_slurm_are_handed_in_and_waited_for(whole, copies, tmp_path, monkeypatch):
    """`sbatch` is a script that runs the array's only job at once, as Slurm would on a node."""
    hub, expected = whole
    tools = tmp_path / "bin"
    tools.mkdir()
    python = Path(sys.executable)
    (tools / "launch_pickled_pipeline").write_text(
        f'#!/bin/sh\nexec {python} -m datatrove.tools.launch_pickled_pipeline "$@"\n'
    )
    (tools / "srun").write_text('#!/bin/sh\nwhile [ "$1" != "launch_pickled_pipeline" ]; do shift; done\nexec "$@"\n')
    (tools / "sbatch").write_text(
        "#!/bin/bash\nscript=${@: -1}\nif grep -q launch_pickled_pipeline $script; then\n"
        "SLURM_ARRAY_TASK_ID=0 RUN_OFFSET=0 SLURM_NODELIST=here SLURM_NODEID=0 SLURM_JOB_ID=7 bash $script >&2\nfi\necho Submitted batch job 7\n"
    )
    (tools / "scontrol").write_text("#!/bin/sh\necho here\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    done = watch_in_a_process(
        hub, copies, tmp_path / "table", "--executor", "slurm", "--slurm-partition", "cpu", "--batch", "100"
    )

    assert done.returncode == 1, done.stderr
    assert told(tmp_path / "table") == expected
    pickled = next((tmp_path / "table").rglob("executor.pik"))
    assert copies.key(0).seed not in pickled.read_bytes() and pickled.parent.stat().st_mode & 0o077 == 0
