"""A benchmark run by several workers, under Ray and under Slurm: the table of one process, whatever is killed or fails on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import matrix_runs
import pytest
import torch
from matrix_runs import HALF, without_clocks

from hf_watermark import InvalidInput
from hf_watermark.evaluation import parse_config, read_table, run_matrix
from hf_watermark.evaluation.matrix.cells import ON_TWIN, Note, Store, attack_cells, model_cells
from hf_watermark.evaluation.matrix.run import CellRunner


pytest.importorskip("datatrove")

from hf_watermark.evaluation.matrix import engine  # noqa: E402


CONFIG = parse_config(HALF)
TWIN_CELL, MARKED_CELL = model_cells(CONFIG)
CHECKS = {cell.label: cell for cell in attack_cells(CONFIG)}


def table_of(folder: Path) -> list[dict]:
    return [without_clocks(row) for row in read_table(folder / "results.parquet")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The whole benchmark, run by this process."""
    folder = tmp_path_factory.mktemp("engine") / "alone"
    run_matrix(CONFIG, folder)
    return folder


@pytest.fixture
def begun(alone, tmp_path):
    """A copy of it without some results."""

    def copy(*missing) -> Store:
        store = Store(shutil.copytree(alone, tmp_path / "begun"))
        (store.folder / "results.parquet").unlink()
        for cell in missing:
            store._path(cell).unlink()
        return store

    return copy


# Several workers


def test_a_killed_run_is_finished_by_more_workers(alone, tmp_path):
    """Of two workers the main process is killed; four go on at once, beside what the two still have in hand."""
    folder, lines = tmp_path / "run", []
    run = subprocess.Popen([sys.executable, matrix_runs.__file__, str(folder)], start_new_session=True)
    try:
        while len(finished := list(folder.glob("cells/*.json"))) < 3:
            assert run.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        run.kill()
        run.wait()
        before = {path: path.read_bytes() for path in finished}

        run_matrix(CONFIG, folder, on_result=lines.append, workers=4)

        assert {path: path.read_bytes() for path in finished} == before
        assert 1 <= len(lines) <= 7 - len(before)
        assert table_of(folder) == table_of(alone)
        assert not list(folder.glob("open/*.json"))
        assert ends(run.pid), "processes of the killed run are left"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


def ends(group: int) -> bool:
    """Whether the last process of a group ends within a minute."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_cell_that_fails_is_named_and_the_others_go_on(alone, begun):
    """The twin's file is damaged, which one of two checks reads."""
    store, lines = begun(CHECKS[ON_TWIN], CHECKS["noise"]), []
    file = store.model_folder(TWIN_CELL) / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ChildProcessError, match="1 cells failed"):
        run_matrix(CONFIG, store.folder, on_result=lines.append, workers=2)

    assert [line for line in lines if line.startswith("failed")] == [lines[-1]]
    assert f"{ON_TWIN} on greedy" in lines[-1] and "Error" in lines[-1]
    others = [row for row in table_of(alone) if row["attack"] != ON_TWIN]
    assert table_of(store.folder) == others

    file.write_bytes(whole)
    again: list[str] = []
    run_matrix(CONFIG, store.folder, on_result=again.append)
    assert len(again) == 1 and again[0].startswith(ON_TWIN)
    assert table_of(store.folder) == table_of(alone)


def test_ray_gives_the_table_of_one_process(alone, begun):
    """The models are left to two Ray workers."""
    pytest.importorskip("ray")
    store, lines = begun(TWIN_CELL, MARKED_CELL), []

    run_matrix(CONFIG, store.folder, on_result=lines.append, executor="ray", workers=2)

    assert sorted(line.split(",")[0] for line in lines) == ["trained greedy", "trained unmarked"]
    for cell in (TWIN_CELL, MARKED_CELL):
        files = [Store(folder).model_folder(cell) / "model.safetensors" for folder in (alone, store.folder)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert table_of(store.folder) == table_of(alone)


def test_a_cell_that_another_worker_finishes_is_not_run(begun, monkeypatch):
    store, tried = begun(), []
    cell = CHECKS["noise"]
    result = store.result(cell)
    store._path(cell).unlink()
    monkeypatch.setattr(CellRunner, "attempt", lambda self, cell: tried.append(cell))
    task = threading.Thread(target=engine.RunCell(str(store.folder), "attacks", (cell.id,)), args=(None, 0, 1))

    with store.held(cell):
        task.start()
        task.join(0.5)
        assert task.is_alive()
        store.write(cell, result)
    task.join(30)

    assert not task.is_alive() and not tried and store.result(cell) == result


def test_a_queued_task_whose_config_changed_says_so(begun):
    with pytest.raises(InvalidInput, match="has changed since this task was queued"):
        engine.RunCell(str(begun().folder), "attacks", ("0" * 64,))(None, 0, 1)


# One cell


@pytest.mark.parametrize(
    ("answers", "tries", "left"),
    [
        ([None], 1, None),
        ([Note("once"), None], 2, None),
        ([Note("once"), Note("twice"), None], 2, Note("twice")),
        ([Note("no library", failed=False), None], 1, Note("no library", failed=False)),
    ],
)
def test_what_fails_is_tried_twice(tmp_path, answers, tries, left):
    store, given = Store(tmp_path), []

    def attempt(cell):
        given.append(cell)
        return answers[len(given) - 1]

    CellRunner(store).settle(TWIN_CELL, attempt)

    assert len(given) == tries and store.note(TWIN_CELL) == left


def test_an_attack_waits_for_its_model(tmp_path, monkeypatch):
    monkeypatch.setattr(CellRunner, "attack", lambda *_: pytest.fail("there is nothing to attack"))
    store = Store(tmp_path)

    CellRunner(store).run([CHECKS["noise"]])

    assert store.note(CHECKS["noise"]) == Note("its model (greedy) is not finished", failed=False)


def test_a_process_that_is_lost_costs_one_try(tmp_path):
    class Runner:
        store = Store(tmp_path)

        def __init__(self, attempt):
            self.attempt = attempt

    def tried(attempt):
        return engine.in_child(Runner(attempt), "models", TWIN_CELL)

    assert "-9" in tried(lambda cell: os.kill(os.getpid(), signal.SIGKILL)).reason
    assert tried(lambda cell: sys.exit()).failed
    assert tried(lambda cell: Note("no library", failed=False)) == Note("no library", failed=False)
    assert tried(lambda cell: None) is None


def test_where_there_are_gpus_a_cell_gets_an_interpreter_of_its_own(begun, alone, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # here, not in the process that is started
    cell = CHECKS["noise"]
    store = begun(cell)

    assert engine.in_child(CellRunner(store), "attacks", cell) is None

    expected = Store(alone).result(cell)
    assert without_clocks(store.result(cell)) == without_clocks(expected)


def test_gpus_are_dealt_out():
    assert [engine.gpus_of(worker, 1, ["4", "6"]) for worker in range(3)] == [["4"], ["6"], ["4"]]
    assert [engine.gpus_of(worker, 2, ["0", "1", "2", "3"]) for worker in range(2)] == [["0", "1"], ["2", "3"]]
    assert engine.gpus_of(0, 1, []) == engine.gpus_of(1, 0, ["0"]) == []


# Slurm

SBATCH = """#!/bin/bash
number=$(ls {0} | wc -l)
{{ echo "arguments: $*"; cat "${{@: -1}}"; }} > {0}/$number
echo "Submitted batch job $((100 + number))"
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch) -> Path:
    """A folder into which a stand-in for `sbatch` writes what it is given; its jobs are called 100, 101 ..."""
    commands, queued = tmp_path / "bin", tmp_path / "queued"
    commands.mkdir()
    queued.mkdir()
    for name, text in {"sbatch": SBATCH.format(queued), "scontrol": "#!/bin/bash\necho node1\n"}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return queued


def test_slurm_gets_the_models_and_then_the_attacks(jobs, tmp_path):
    config, folder, lines = parse_config(HALF | {"device": "cuda", "threads": 4}), tmp_path / "run", []

    run_matrix(
        config, folder, on_result=lines.append, executor="slurm", workers=3, partition="gpu", time="02:00:00",
    )  # fmt: skip

    models, _, attacks, _ = ((jobs / str(number)).read_text().splitlines() for number in range(4))
    for script in (models, attacks):
        wanted = "partition=gpu", "time=02:00:00", "gpus=1", "cpus-per-task=4", "mem-per-cpu=2G", "requeue"
        assert {f"#SBATCH --{option}" for option in wanted} <= set(script)
        assert f"export PATH={Path(sys.executable).parent}:$PATH" in script
        assert not any("qos" in line for line in script)
    assert "#SBATCH --array=0-1%3" in models and "#SBATCH --array=0-4%3" in attacks
    assert "dependency" not in models[0] and "--dependency=afterany:100" in attacks[0]
    for phase, script in (("models", models), ("attacks", attacks)):
        (pickled,) = folder.glob(f"tasks/{phase}-*/executor.pik")
        assert script[-1].endswith(f"launch_pickled_pipeline {pickled}")
    assert lines == ["queued 2 models as job 100", "queued 5 attacks as job 102", lines[-1]]
    assert "--only-table" in lines[-1] and not (folder / "results.parquet").exists()


def test_a_task_of_slurm_runs_its_cell(jobs, alone, begun, monkeypatch):
    dill = pytest.importorskip("dill")
    store = begun(CHECKS["prune"], CHECKS["noise"])
    run_matrix(CONFIG, store.folder, executor="slurm", partition="cpu", time="1:00:00")
    (pickled,) = store.folder.glob("tasks/attacks-*/executor.pik")
    ranks = json.loads((pickled.parent / "ranks_to_run.json").read_text())

    # What `launch_pickled_pipeline` does in a job.
    monkeypatch.setenv("SLURM_NODELIST", "node1")
    for rank in range(len(ranks)):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(rank))
        executor = dill.loads(pickled.read_bytes())
        executor.requeue_signals = None
        executor.run()
    run_matrix(CONFIG, store.folder, only_table=True)

    assert len(ranks) == 2 and table_of(store.folder) == table_of(alone)


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "slurm"}, "--partition"),
        ({"executor": "slurm", "partition": "gpu"}, "--time"),
        ({"executor": "ray", "partition": "gpu"}, "go with --executor slurm"),
        ({"executor": "kubernetes"}, "local, slurm or ray"),
        ({"workers": 0}, "--workers 0"),
        ({"workers": 2, "gpus_per_task": -1}, "--gpus-per-task -1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, options, message):
    with pytest.raises(InvalidInput, match=message):
        run_matrix(CONFIG, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_launcher_is_refused(tmp_path, monkeypatch):
    """Each of its processes would run the whole benchmark."""
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(InvalidInput, match="without a launcher, with --workers"):
        run_matrix(CONFIG, tmp_path / "run")


@pytest.mark.parametrize(
    ("package", "options", "message"),
    [
        ("datatrove", {"workers": 2}, r"hf-watermark\[watch\]"),
        ("datatrove", {"executor": "ray"}, r"hf-watermark\[watch\]"),
        ("ray", {"executor": "ray"}, "pip install ray"),
    ],
)
def test_a_missing_engine_is_named(tmp_path, monkeypatch, package, options, message):
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(ImportError, match=message):
        run_matrix(CONFIG, tmp_path / "run", **options)


def test_a_place_without_limits_takes_all_that_the_cluster_gives(tmp_path):
    step = engine.RunCell(str(tmp_path), "models", ("a", "b"))
    place = engine.Place("slurm", partition="gpu", time="1:00:00")

    assert place.executor_for(step, CONFIG).workers == -1
    assert place.executor_for(step, CONFIG).gpus_per_task == 0
    assert replace(place, gpus_per_task=2).executor_for(step, CONFIG).gpus_per_task == 2
