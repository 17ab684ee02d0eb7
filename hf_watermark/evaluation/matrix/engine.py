"""
Cells of a benchmark as tasks of a datatrove pipeline: on this machine, under Slurm, or in a Ray cluster.

One task is one cell, and all models come before the attacks on them. Workers share a folder and nothing else. What is finished is what lies
in the [`Store`], so datatrove's own marks of completed tasks, which count places in a list, are not asked. Seeds and keys follow from the
cells: the table does not depend on who ran what.
"""

import hashlib
import json
import math
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from logging import ERROR
from pathlib import Path
from typing import Any

import multiprocess
import torch
from datatrove.executor import RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from loguru import logger
from transformers.utils import logging

from ...serialization import InvalidInput
from ..local_executor import LocalExecutor
from .cells import Cell, Note, Store, attack_cells
from .config import MatrixConfig, parse_config
from .run import CellRunner, describe_result, model_of
from .table import cells_of_phase, read_stored_config


PHASES = ("models", "attacks")
# Of main memory for one cell: what Slurm reserves, and ends a job beyond.
CELL_GIB = 8


@dataclass(frozen=True)
class Place:
    """
    Where cells run.

    Args:
        executor (`str`):
            `local`, `slurm` or `ray`.
        workers (`int`, *optional*):
            Cells at a time; `None` for as many as the cluster gives.
        gpus_per_task (`int`, *optional*):
            GPUs that one cell sees; by default one where the config asks for `cuda`. More than one changes the batches.
        partition, time (`str`, *optional*):
            Of Slurm; `time` is the limit of one cell.
    """

    executor: str = "local"
    workers: int | None = None
    gpus_per_task: int | None = None
    partition: str | None = None
    time: str | None = None

    def executor_for(
        self, step: "RunCell", config: MatrixConfig, before: PipelineExecutor | None = None
    ) -> PipelineExecutor:
        """The datatrove executor of one phase; under Slurm its jobs wait for the end of those of `before`."""
        gpus = int(config.device == "cuda") if self.gpus_per_task is None else self.gpus_per_task
        common: dict[str, Any] = {
            "pipeline": [step],
            "tasks": len(step.cells),
            "workers": self.workers or -1,
            "logging_dir": str(step.log_folder),
            "skip_completed": False,
        }
        if self.executor == "local":
            return LocalWorkers(gpus_per_task=1 if self.gpus_per_task is None else gpus, **common)
        if self.executor == "ray":
            # Memory is not reserved: on a machine with less than that, Ray would wait for more for ever.
            return RayPipelineExecutor(cpus_per_task=config.threads, gpus_per_task=gpus, mem_per_cpu_gb=0, **common)
        return SlurmPipelineExecutor(
            **common,
            partition=self.partition,
            time=self.time,
            cpus_per_task=config.threads,
            mem_per_cpu_gb=math.ceil(CELL_GIB / config.threads),
            gpus_per_task=gpus,
            job_name=f"{config.name}-{step.phase}",
            qos=None,
            env_command=f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
            depends=before,
            # A model that failed costs the attacks on it, not those on the others.
            run_on_dependency_fail=True,
        )


class LocalWorkers(LocalExecutor):
    """Shares the GPUs of this machine out among the workers, and leaves to standard error what is worth it."""

    def __init__(self, gpus_per_task: int, **options: Any):
        super().__init__(**options)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = torch.cuda.device_count()
        self.gpus = [str(index) for index in range(count)] if visible is None else visible.split(",")[:count]
        self.gpus_per_task = gpus_per_task

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus_of(local_rank, self.gpus_per_task, self.gpus))
        logger.enable("datatrove")
        try:
            # Rank 0 would repeat on standard error what every log says.
            return super()._run_for_rank(rank, local_rank + 1, node_rank)
        finally:
            logger.disable("datatrove")


def gpus_of(worker: int, each: int, gpus: Sequence[str]) -> list[str]:
    """The GPUs of one worker; where there are too few, several workers share them."""
    return [gpus[(worker * each + number) % len(gpus)] for number in range(min(each, len(gpus)))]


@dataclass(frozen=True)
class RunCell:
    """
    The one step of the pipeline: rank `n` runs the `n`-th of these cells. Plain text only, because datatrove hands it on by `dill`.

    Args:
        folder (`str`):
            Of the benchmark, absolute.
        cells (`tuple[str]`):
            Their ids.
    """

    folder: str
    phase: str
    cells: tuple[str, ...]

    @property
    def log_folder(self) -> Path:
        digest = hashlib.sha256("".join(self.cells).encode()).hexdigest()
        return Path(self.folder, "tasks", f"{self.phase}-{digest[:12]}")

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        runner, cells = _prepared(self.folder, self.phase)
        cell = cells.get(self.cells[rank])
        if cell is None:
            raise InvalidInput(
                f"{self.folder}: its config has changed since this task was queued; start the benchmark again"
            )
        if not torch.cuda.is_available():
            # Read here, images serve the next cells of this process too. Why they cannot be read is said by the child.
            with suppress(Exception):
                runner.data(model_of(cell).data_spec)
        runner.settle(cell, partial(in_child, runner, self.phase))
        result, note = runner.store.result(cell), runner.store.note(cell)
        logger.info(describe_result(cell, result) if result else note.reason if note else "")


@lru_cache(maxsize=2)
def _prepared(folder: str, phase: str) -> tuple[CellRunner, dict[str, Cell]]:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # threads of this process would be missing in its children
    config = parse_config(read_stored_config(Path(folder)))
    return CellRunner(Store(folder)), {cell.id: cell for cell in cells_of_phase(config, phase)}


def in_child(runner: CellRunner, phase: str, cell: Cell) -> Note | None:
    """
    Tries a cell in a process of its own: one that is killed, or out of memory, costs this try and not the worker, for which datatrove would
    wait for ever. A fork needs no import of torch, which takes longer than many a cell, but cannot use CUDA once a library has looked for it.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if torch.cuda.is_available():
        words = [sys.executable, "-m", __name__, str(runner.store.folder), phase, cell.id, str(writer)]
        ended: Callable[[], int] = subprocess.Popen(words, pass_fds=(writer,), stdin=subprocess.DEVNULL).wait
    else:
        child = os.fork()
        if child == 0:
            try:
                os.close(reader)
                answer(runner.attempt(cell), writer)
            finally:
                os._exit(0)
        ended = lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # noqa: E731
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read()
    status = ended()
    if said:
        fields = json.loads(said)
        return Note(**fields) if fields else None
    return Note(f"its process was lost (exit status {status}; a negative one is a signal)")


def answer(note: Note | None, writer: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(writer, json.dumps(asdict(note) if note else None).encode())


def run_phases(config: MatrixConfig, store: Store, place: Place, say: Callable[[str], None]) -> bool:
    """
    Runs what is open, or queues it under Slurm.

    Args:
        say (`Callable`):
            Gets a line per finished cell, from another thread.

    Returns:
        `bool`: whether the cells have run.
    """
    multiprocess.set_forkserver_preload([__name__])  # one import of torch for all local workers
    with quiet(), ray_cluster(place):
        executor = None
        for phase in PHASES:
            cells = store.still_open(cells_of_phase(config, phase), attack_cells(config))
            if not cells:
                continue
            step = RunCell(str(store.folder.resolve()), phase, tuple(cell.id for cell in cells))
            executor = place.executor_for(step, config, before=executor)
            if place.executor == "slurm":
                executor.run()
                say(f"queued {len(cells)} {phase} as job {executor.job_id}")
            else:
                with told(cells, store, say):
                    executor.run()
    return place.executor != "slurm"


@contextmanager
def quiet() -> Iterator[None]:
    """Without datatrove's words on standard error: its logs are in the folder."""
    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")


@contextmanager
def ray_cluster(place: Place) -> Iterator[None]:
    """The cluster of `RAY_ADDRESS`, or this machine as one, unless the caller is in one already."""
    if place.executor != "ray":
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    began = not ray.is_initialized()
    if began:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=ERROR)
    try:
        yield
    finally:
        if began:
            ray.shutdown()


@contextmanager
def told(cells: Sequence[Cell], store: Store, say: Callable[[str], None]) -> Iterator[None]:
    """Tells of each cell soon after its result lies in the store, whichever process or machine put it there."""
    waiting, over = {cell.id: cell for cell in cells}, threading.Event()

    def tell() -> None:
        for cell in list(waiting.values()):
            result = store.result(cell) if store.complete(cell) else None
            if result is not None:
                del waiting[cell.id]
                say(describe_result(cell, result))

    def watch() -> None:
        while not over.wait(1):
            tell()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        tell()


if __name__ == "__main__":  # by `in_child`
    _folder, _phase, _cell, _writer = sys.argv[1:]
    _runner, _cells = _prepared(_folder, _phase)
    answer(_runner.attempt(_cells[_cell]), int(_writer))
