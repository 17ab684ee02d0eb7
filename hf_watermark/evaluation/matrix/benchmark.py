"""`run_matrix`: the whole benchmark, and what it leaves in its folder."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...serialization import InvalidInput
from .cards import write_cards
from .cells import Cell, Note, Store, attack_cells, model_cells
from .config import MatrixConfig
from .report import write_matrix_report
from .run import CellRunner, describe_cell, describe_result
from .table import TABLE, cells_of_phase, read_table, store_config, table_rows, take_over, write_table


if TYPE_CHECKING:
    from .engine import Place


REPORT, CARDS = "report.html", "model_cards"


def run_matrix(
    config: MatrixConfig,
    output: str | Path,
    command: str = "",
    on_result: Callable[[str], None] | None = None,
    only_table: bool = False,
    reuse: str | Path | None = None,
    executor: str = "local",
    workers: int | None = None,
    gpus_per_task: int | None = None,
    partition: str | None = None,
    time: str | None = None,
) -> Path:
    """
    Runs every cell that is not finished yet, then writes `results.parquet`, `report.html` and `model_cards/` from the finished ones.

    Cells are the training of one model, or one attack on one. Each is known by the digest of everything that determines it, and its result is
    written when it is complete: a killed run loses the cell it was at, and a later run with the same folder goes on there. Every seed and key
    follows from the cell, so a key of a benchmark is no secret: never publish a model of one as your own.

    A cell that fails is tried once more; then it is named, and the others go on. With `workers` or an `executor` the cells are tasks of a
    datatrove pipeline (extra `watch`); the table is the one that one process gives.

    Args:
        config ([`MatrixConfig`]):
            What [`read_config`] gives.
        output (`str` or `Path`):
            A new folder, or one of an earlier run. Workers on several machines need a folder that all of them see.
        command (`str`, *optional*):
            For the cards: how to run this again.
        on_result (`Callable`, *optional*):
            Gets one line per finished cell; with several workers from another thread.
        only_table (`bool`, *optional*, defaults to `False`):
            Run nothing, write what can be written from the finished cells.
        reuse (`str` or `Path`, *optional*):
            A table of an earlier run, of somebody else's too: rows of cells that this config has count as finished. They are believed, not
            checked.
        executor (`str`, *optional*, defaults to `"local"`):
            `local`: processes of this machine. `slurm`: the cells are queued, and `only_table` writes the table when the jobs are over. `ray`:
            the cluster of `RAY_ADDRESS`, else this machine; Ray is installed by itself.
        workers (`int`, *optional*):
            Cells at a time. By default one, in this process, or as many as the cluster gives. A script that asks for several needs
            `if __name__ == "__main__":`.
        gpus_per_task (`int`, *optional*):
            GPUs that a cell sees; by default one where the config asks for `cuda`, and of local workers where there is one. More than one
            changes the batches.
        partition, time (`str`, *optional*):
            Where `slurm` queues the cells, and the limit of one, such as `02:00:00`.

    Returns:
        `Path`: the parquet file, which Slurm's jobs have still to fill.

    Raises:
        [`~serialization.InvalidInput`]: when the folder holds something else, data cannot be read, or options do not go together.
        `ChildProcessError`: when cells failed; the table has the others.
        `ImportError`: when the engine is not installed.

    Example:

    ```python
    >>> from hf_watermark.evaluation import read_config, run_matrix

    >>> table = run_matrix(read_config("matrix_digits.yaml"), "runs/matrix")
    ```
    """
    output = Path(output)
    place = None if only_table else engine_place(executor, workers, gpus_per_task, partition, time)
    refuse_foreign_folder(output)
    store = Store(output)
    say = on_result or (lambda line: None)
    if reuse is not None:
        taken = take_over(config, store, read_table(reuse))
        say(f"{taken} finished checks taken over from {reuse}")
    bf16 = any(cell.precision == "bf16" for cell in model_cells(config))
    if not only_table and bf16 and config.device == "cpu" and bfloat16_is_emulated():
        say(
            "this processor has no bfloat16 arithmetic and trains with it about eight times as slowly; `precision: fp32` is faster here"
        )
    if not only_table:
        store_config(config, output)
    if place is not None:
        from .engine import run_phases

        if not run_phases(config, store, place, say):
            say("when the jobs are over, --only-table writes the table")
            return output / TABLE
    elif not only_table:
        runner = CellRunner(store, lambda cell, result: say(describe_result(cell, result)))
        checks = attack_cells(config)
        runner.run(store.still_open([*model_cells(config), *checks], checks))
    failed = tell_open_cells(config, store, say, ran=not only_table)
    if failed and not only_table:
        if table_rows(config, store):
            write_outputs(config, store, command)
        raise ChildProcessError(
            f"{failed} cells failed, see above; the table has the finished ones. Run the same command again to try the others"
        )
    return write_outputs(config, store, command)


def engine_place(
    executor: str, workers: int | None, gpus_per_task: int | None, partition: str | None, time: str | None
) -> "Place | None":
    """
    Where the cells run, or `None` for this process, which needs no engine.

    Raises:
        [`~serialization.InvalidInput`]: when options do not go together.
        `ImportError`: when datatrove or Ray is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        raise InvalidInput("a benchmark shares its cells out by itself: start it without a launcher, with --workers N")
    if executor not in ("local", "slurm", "ray"):
        raise InvalidInput(f"--executor {executor!r}: choose local, slurm or ray")
    if workers is not None and workers < 1:
        raise InvalidInput(f"--workers {workers}: give 1 or more")
    if gpus_per_task is not None and gpus_per_task < 0:
        raise InvalidInput(f"--gpus-per-task {gpus_per_task}: give 0 or more")
    if executor == "slurm" and not (partition and time):
        raise InvalidInput("--executor slurm needs --partition NAME and --time LIMIT (of one cell, such as 02:00:00)")
    if executor != "slurm" and (partition or time):
        raise InvalidInput("--partition and --time go with --executor slurm")
    if executor == "local":
        workers = workers or 1
        if workers == 1:
            return None
    try:
        import datatrove  # noqa: F401

        from .engine import Place
    except ModuleNotFoundError as error:
        if error.name != "datatrove":
            raise
        raise ImportError(
            f"several workers and --executor {executor} need datatrove: pip install 'hf-watermark[watch]'"
        ) from None
    if executor == "ray" and find_spec("ray") is None:
        raise ImportError("--executor ray needs Ray: pip install ray")
    return Place(executor, workers, gpus_per_task, partition, time)


def tell_open_cells(config: MatrixConfig, store: Store, say: Callable[[str], None], ran: bool) -> int:
    """
    Names every cell that a run left open, with the reason.

    Args:
        ran (`bool`):
            Whether all cells had their turn: one of which nothing is known then was lost.

    Returns:
        `int`: how many of them failed.
    """
    failed = 0
    cells: list[Cell] = [*model_cells(config), *attack_cells(config)]
    for cell in cells:
        note = store.note(cell)
        if note is None and ran and not store.done(cell):
            note = Note("its worker was lost")
        if note is not None:
            failed += note.failed
            say(f"{'failed' if note.failed else 'left out'}: {describe_cell(cell)}: {note.reason}")
    return failed


def write_outputs(config: MatrixConfig, store: Store, command: str) -> Path:
    """Table, report and cards from the cells that are finished."""
    rows = table_rows(config, store)
    if not rows:
        raise InvalidInput(f"{store.folder}: no cell of this config is finished; run it without --only-table")
    path = write_table(rows, store.folder / TABLE)
    total = len(cells_of_phase(config, "attacks"))
    write_matrix_report(rows, store.folder / REPORT, config.name, open_cells=total - len(rows))
    write_cards(path, store.folder / CARDS, command)
    return path


def bfloat16_is_emulated() -> bool:
    """Whether PyTorch computes with bfloat16 one number at a time, as on x86 processors without AVX-512."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "NO AVX")


def refuse_foreign_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"{output} is a file; choose another folder with --output")
    if output.exists() and any(output.iterdir()) and not (output / "cells").is_dir():
        raise InvalidInput(f"{output} holds files that no benchmark made; choose another folder with --output")
