"""
A script in several processes as torchrun starts them (gloo), forked from one interpreter that has read the libraries already: each would take ten
seconds of a processor to do so. What torchrun itself does is tested with the examples.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from pathlib import Path


READ_FIRST = ["timm", "hf_watermark.training.trainer", "torch.distributed.run"]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(READ_FIRST)


def run_together(script: str, *arguments: str, count: int = 2, timeout: float = 600, **environment: str) -> str:
    """
    Args:
        script (`str`): Run as `__main__` with `arguments` by every process.
        environment (`str`): What the processes have in theirs besides torchrun's variables.

    Returns:
        `str`: All that they wrote. Where one ends with an error the test fails with it.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        shared = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
            "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        free.close()
        logs = [Path(folder) / str(rank) for rank in range(count)]
        own = [shared | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        workers = [
            _context.Process(target=_run, args=(script, arguments, variables, str(log)))
            for variables, log in zip(own, logs, strict=True)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(timeout)
        written = "\n".join(log.read_text() for log in logs if log.exists())
        for worker in workers:
            worker.kill()
        assert [worker.exitcode for worker in workers] == [0] * count, written
    return written


def _run(script: str, arguments: tuple[str, ...], environment: dict[str, str], log: str) -> None:
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    sys.argv[:] = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
