"""
Spreading cells over processes and machines under `accelerate launch`.

The processes of a benchmark share a folder and nothing else: each cell belongs to one of them by its digest, and each of them runs its
cells in a child process that knows of no other process, because a Trainer inside a process group would average the gradients of different
models. Seeds and keys follow from the cells, so the table does not depend on how many processes there were.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from accelerate import PartialState


# What launchers set to announce a process group.
GROUP_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
GROUP_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "OMPI_", "PMI_", "MPI_", "MV2_")
# Processes wait for the slowest one; the usual ten or thirty minutes are too short for that.
PATIENCE = timedelta(days=14)
PHASES = ("models", "attacks")
Item = TypeVar("Item")


def share_of(items: Sequence[Item], index: int, count: int) -> list[Item]:
    """The items of one of `count` processes: dealt out in turn, which spreads expensive neighbours."""
    return list(items[index::count])


def launched_processes() -> int:
    """How many processes a launcher started this script in; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def run_share(config: Path, output: Path) -> bool:
    """
    Runs this process's share of both phases, waiting for the others in between.

    Returns:
        `bool`: whether this process is the one that writes the table.

    Raises:
        `RuntimeError`: when a cell failed in the child process of any process; what is finished stays.
    """
    cpu = "CUDA_VISIBLE_DEVICES" in os.environ and not os.environ["CUDA_VISIBLE_DEVICES"]
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    for phase in PHASES:
        child = subprocess.Popen(
            worker_command(config, output, phase, state.process_index, state.num_processes),
            env=lonely_environment(os.environ, state.local_process_index),
        )
        previous = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        try:
            status = child.wait()
        finally:
            child.kill()
            signal.signal(signal.SIGTERM, previous)
        if status != 0:
            raise RuntimeError(f"process {state.process_index}: phase {phase!r} ended with status {status}; see above")
        state.wait_for_everyone()
    return state.is_main_process


def worker_command(config: Path, output: Path, phase: str, index: int, count: int) -> list[str]:
    place = [str(index), str(count), str(os.getpid())]
    return [sys.executable, "-m", "hf_watermark.evaluation.matrix.worker", str(config), str(output), phase, *place]


def lonely_environment(environment: "os._Environ[str] | dict[str, str]", local_index: int) -> dict[str, str]:
    """The environment without any trace of a process group, and with one accelerator at most."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in GROUP_VARIABLES and not name.startswith(GROUP_PREFIXES)
    }
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        kept["CUDA_VISIBLE_DEVICES"] = str(local_index)
    elif visible:
        devices = visible.split(",")
        kept["CUDA_VISIBLE_DEVICES"] = devices[local_index % len(devices)]
    return kept
