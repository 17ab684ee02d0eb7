"""
A batch as tasks of a datatrove pipeline: on this machine, on a Ray cluster, or on Slurm.

A task gets the path of the output folder and the number of the batch, and nothing else: what an executor writes down (`executor.json`, and for
Slurm `executor.pik`, which datatrove pickles) holds no key and no token. Keys are opened where they are needed, from their folders.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..serialization import InvalidInput, write_json_atomic
from .settings import WatchSettings, scrubbed
from .table import Table


try:
    from datatrove.pipeline.base import PipelineStep
    from datatrove.utils.logging import logger
except ImportError as error:
    raise ImportError("watching needs datatrove and online-fdr: pip install 'hf-watermark[watch]'") from error


# Its lines are many and say where things stand inside it; what fails is in `failure-*.txt` beside the batch, and in an exception.
logger.disable("datatrove")
# How often a batch is begun again for repositories that no worker finished.
ATTEMPTS = 3
# What each forked worker has already: imported once by the server that forks them.
PRELOADED = ["hf_watermark.watch.looking"]
SLURM_POLL = 10.0


class LookAtBatch(PipelineStep):
    """
    Every `world_size`-th repository of a batch, from the `rank`-th on. What an earlier attempt finished is left out.

    Args:
        output (`str`):
            The watch's output folder.
        batch (`int`):
            Number of the batch.
    """

    name = "Look"
    type = "Watch"

    def __init__(self, output: str, batch: int):
        super().__init__()
        self.output, self.batch = output, batch

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yields nothing: what was found stands in the batch's folder."""
        try:
            self._look(rank, world_size)
        except Exception as error:
            text = f"{type(error).__name__}: {scrubbed(str(error))}\n"
            (Table(Path(self.output)).batch_folder(self.batch) / f"failure-{rank}.txt").write_text(text)
            raise
        yield from ()

    def _look(self, rank: int, world_size: int) -> None:
        from .keys import open_keys
        from .limiter import Limiter
        from .looking import Looker

        start = time.perf_counter()
        settings = WatchSettings.load(self.output)
        Limiter(settings.folder / "limits", settings.rate).install()
        table = Table(settings.folder)
        batch, done = table.batch(self.batch), table.read_rows(self.batch)
        looker = Looker(open_keys(settings), settings.largest)
        worker = f"{rank}-{socket.gethostname()[:40]}-{os.getpid()}"
        self.stat_update("start", value=time.perf_counter() - start, unit="task")
        for place in range(rank, len(batch.repos), world_size):
            if place in done:
                continue
            rows, evidence = looker.rows(batch.repos[place])
            for number, folder in enumerate(settings.keys):
                if folder in evidence:
                    name = f"evidence-{place}-{number}.json"
                    write_json_atomic(table.batch_folder(self.batch) / name, evidence[folder])
            table.append(self.batch, worker, place, rows)
            self.stat_update("repositories", value=1, unit="task")
            self.stat_update("requests", value=rows[0]["requests"], unit="repository")
        self.stat_update("memory_mb", value=own_megabytes(), unit="task")


def own_megabytes() -> float:
    """
    Memory of this process in MB, with its part of what it shares with others (the sum over all workers is what they take together); 0 where
    the system does not say.
    """
    try:
        text = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def run_batch(settings: WatchSettings, number: int) -> None:
    """
    Has every repository of a batch looked at, by as many workers as the settings say. Whatever a worker finished stays, whoever is killed.

    Raises:
        [`~serialization.InvalidInput`]: when the executor cannot be used here.
    """
    table = Table(settings.folder)
    count = len(table.batch(number).repos)
    failure: Exception | None = None
    for attempt in range(ATTEMPTS):
        if len(table.read_rows(number)) == count:
            return
        executor = executor_for(settings, number, count, attempt)
        try:
            executor.run()
            if settings.executor == "slurm":
                _wait_for_slurm(executor, settings)
        except InvalidInput:
            raise
        except OSError:
            raise  # a full disk is full the next time as well
        except Exception as error:  # of any of the engines
            failure = error
    if failure is not None and not table.read_rows(number):
        raise failure


def executor_for(settings: WatchSettings, number: int, count: int, attempt: int = 0) -> Any:
    """The datatrove executor of one batch; its logs lie beside the batch."""
    folder = Table(settings.folder).batch_folder(number) / f"engine-{attempt}"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # Slurm loads a pickle from here
    pipeline = [LookAtBatch(settings.output, number)]
    tasks = max(1, min(settings.workers, count))
    if settings.executor == "ray":
        return _ray(pipeline, tasks, folder)
    if settings.executor == "slurm":
        from datatrove.executor.slurm import SlurmPipelineExecutor

        said = settings.slurm or {}
        if "partition" not in said:
            raise InvalidInput("`slurm` names no partition: give --slurm-partition NAME")
        return SlurmPipelineExecutor(
            pipeline, tasks, time=said.get("time", "04:00:00"), partition=said["partition"], logging_dir=str(folder),
            job_name="hf-watermark-watch", mail_type="NONE", venv_path=said.get("venv"),
        )  # fmt: skip
    import multiprocess

    from ..evaluation.local_executor import LocalExecutor

    if tasks > 1:
        # Imported once, in the server that forks the workers: they start at once and share its memory.
        multiprocess.set_forkserver_preload(PRELOADED)
    return LocalExecutor(pipeline, tasks, logging_dir=str(folder))


def _ray(pipeline: list[Any], tasks: int, folder: Path) -> Any:
    try:
        import ray
    except ImportError:
        raise InvalidInput("`executor` is ray, which is not installed: pip install 'hf-watermark[ray]'") from None
    from datatrove.executor.ray import RayPipelineExecutor

    if not ray.is_initialized():
        # The cluster that RAY_ADDRESS names; else this machine is one.
        cores = None if os.environ.get("RAY_ADDRESS") else max(tasks, os.cpu_count() or 1)
        ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return RayPipelineExecutor(pipeline, tasks, logging_dir=str(folder), mem_per_cpu_gb=0.5)


def _wait_for_slurm(executor: Any, settings: WatchSettings) -> None:
    """datatrove hands the jobs to Slurm and returns; a batch is entered when they are done."""
    days, _, clock = (settings.slurm or {}).get("time", "04:00:00").rpartition("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    limit = time.monotonic() + ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    while executor.get_incomplete_ranks() and time.monotonic() < limit:
        time.sleep(SLURM_POLL)
