"""`python -m hf_watermark.evaluation.matrix.worker`: one process's share of one phase; started by [`~processes.run_share`]."""

import os
import sys
from pathlib import Path

from transformers.utils import logging

from .cells import Store
from .config import parse_config
from .processes import share_of
from .run import CellRunner
from .table import cells_of_phase, read_stored_config


def main(arguments: list[str]) -> int:
    _, output, phase, index, count, parent = arguments
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = parse_config(read_stored_config(Path(output)))
    cells = cells_of_phase(config, phase)
    # A killed launcher cannot take its grandchildren along: they notice between two cells.
    runner = CellRunner(Store(output), print_cell, alive=lambda: os.getppid() == int(parent))
    for line in runner.run(share_of(cells, int(index), int(count))):
        print(f"left out: {line}", file=sys.stderr, flush=True)
    return 0


def print_cell(cell: object, result: dict) -> None:
    from .benchmark import describe_result

    print(describe_result(cell, result), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
