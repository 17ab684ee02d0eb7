"""`python -m hf_watermark.evaluation.matrix.worker`: one process's share of a benchmark; started by [`~processes.run_share`]."""

import os
import sys
from pathlib import Path

from transformers.utils import logging

from .benchmark import describe_result
from .cells import Store, attack_cells
from .config import parse_config
from .processes import PHASE_DONE, PHASES, share_of
from .run import CellRunner
from .table import cells_of_phase, read_stored_config


def main(arguments: list[str]) -> int:
    """Arguments: folder, index of this process, number of processes."""
    output, index, count = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config, store = parse_config(read_stored_config(output)), Store(output)
    parent = os.getppid()
    # A launcher that is killed cannot take its grandchildren along: they notice between two cells.
    runner = CellRunner(
        store,
        lambda cell, result: print(describe_result(cell, result), flush=True),
        alive=lambda: os.getppid() == parent,
    )
    for phase in PHASES:
        # Dealt out before the finished ones are left out: what is finished changes while other processes run.
        share = store.still_open(share_of(cells_of_phase(config, phase), index, count), attack_cells(config))
        for line in runner.run(share):
            print(f"left out: {line}", flush=True)
        print(PHASE_DONE, flush=True)
        if not sys.stdin.readline():  # the parent is gone
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
