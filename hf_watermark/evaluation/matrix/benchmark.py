"""`run_matrix`: the whole benchmark, and what it leaves in its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...serialization import InvalidInput
from .cards import write_cards
from .cells import AttackCell, Cell, ModelCell, Store, attack_cells, model_cells
from .config import MatrixConfig
from .processes import launched_processes, run_share
from .report import write_matrix_report
from .run import CellRunner
from .table import TABLE, cells_of_phase, read_table, store_config, table_rows, take_over, write_table


REPORT, CARDS = "report.html", "model_cards"


def run_matrix(
    config: MatrixConfig,
    output: str | Path,
    command: str = "",
    on_result: Callable[[str], None] | None = None,
    only_table: bool = False,
    reuse: str | Path | None = None,
) -> Path:
    """
    Runs every cell that is not finished yet, then writes `results.parquet`, `report.html` and `model_cards/` from the finished ones.

    Cells are the training of one model, or one attack on one. Each is known by the digest of everything that determines it, and its result is
    written when it is complete: a killed run loses the cell it was at, and a later run with the same folder goes on there. Every seed and key
    follows from the cell, so a key of a benchmark is no secret: never publish a model of one as your own.

    Under `accelerate launch` or `torchrun` the cells are spread over all processes; the table is the one that one process gives.

    Args:
        config ([`MatrixConfig`]):
            What [`read_config`] gives.
        output (`str` or `Path`):
            A new folder, or one of an earlier run. Processes on several machines need a folder that all of them see.
        command (`str`, *optional*):
            For the cards: how to run this again.
        on_result (`Callable`, *optional*):
            Gets one line per finished cell.
        only_table (`bool`, *optional*, defaults to `False`):
            Run nothing, write what can be written from the finished cells.
        reuse (`str` or `Path`, *optional*):
            A table of an earlier run, of somebody else's too: rows of cells that this config has count as finished. They are believed, not
            checked.

    Returns:
        `Path`: the parquet file.

    Raises:
        [`~serialization.InvalidInput`]: when the folder holds something else, or data cannot be read.

    Example:

    ```python
    >>> from hf_watermark.evaluation import read_config, run_matrix

    >>> table = run_matrix(read_config("matrix_digits.yaml"), "runs/matrix")
    ```
    """
    output = Path(output)
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
    if launched_processes() > 1 and not only_table:
        store_config(config, output)  # the same bytes from every process, each written completely
        if not run_share(output, say):
            return output / TABLE
    elif not only_table:
        store_config(config, output)
        runner = CellRunner(store, lambda cell, result: say(describe_result(cell, result)))
        checks = attack_cells(config)
        for line in runner.run(store.still_open([*model_cells(config), *checks], checks)):
            say(f"left out: {line}")
    return write_outputs(config, store, command)


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


def describe_result(cell: Cell, result: dict[str, Any]) -> str:
    """One line for people."""
    model = cell.model if isinstance(cell, AttackCell) else cell
    place = f"{model.method}, {model.backbone} on {model.data}, seed {model.seed}"
    if isinstance(cell, ModelCell):
        return f"trained {place}: accuracy {result['accuracy']:.4f} ({result['cpu_seconds']:.0f} s CPU)"
    known = "" if result.get("accuracy") is None else f", accuracy {result['accuracy']:.4f}"
    strength = "" if result.get("log2_p") is None else f", log2 p = {result['log2_p']}"
    return f"{cell.label} on {place}: {result['verdict']}{strength}{known} ({result['cpu_seconds']:.0f} s CPU)"
