"""
Spreading cells over processes and machines under `accelerate launch` or `torchrun`.

The processes of a benchmark share a folder and nothing else: each cell belongs to one of them by its digest, and each of them runs its
cells in a child process that knows of no other process, because a Trainer inside a process group would average the gradients of different
models. Seeds and keys follow from the cells, so the table does not depend on how many processes there were.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
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
PHASE_DONE = "-- phase done --"
Item = TypeVar("Item")


def share_of(items: Sequence[Item], index: int, count: int) -> list[Item]:
    """The items of one of `count` processes: dealt out in turn, which spreads expensive neighbours."""
    return list(items[index::count])


def launched_processes() -> int:
    """How many processes a launcher started this script in; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def run_share(output: Path, say: Callable[[str], None]) -> bool:
    """
    Runs this process's share of the models, waits for the others, and runs its share of the attacks. What to run stands in the folder.

    Args:
        say (`Callable`):
            Gets the lines that the child process writes.

    Returns:
        `bool`: whether this process is the one that writes the table.

    Raises:
        `ChildProcessError`: when a cell failed; what is finished stays.
    """
    # The processes only meet here, so gloo is enough, whatever the cells run on.
    state = PartialState(cpu=True, timeout=PATIENCE)
    place = [str(output), str(state.process_index), str(state.num_processes)]
    child = subprocess.Popen(
        [sys.executable, "-m", "hf_watermark.evaluation.matrix.worker", *place],
        env=lonely_environment(os.environ, state.local_process_index),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        for phase in PHASES:
            for line in child.stdout:
                if line.rstrip() == PHASE_DONE:
                    break
                say(line.rstrip())
            else:
                raise ChildProcessError(
                    f"process {state.process_index}: a cell of the {phase} failed (status {child.wait()}), see above; finished cells "
                    "stay, run the same command again"
                )
            state.wait_for_everyone()
            child.stdin.write("go on\n")
            child.stdin.flush()
    finally:
        # A child whose pipe is closed ends by itself, also where this process is killed.
        child.stdin.close()
        child.terminate()
        child.wait()
    return state.is_main_process


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
