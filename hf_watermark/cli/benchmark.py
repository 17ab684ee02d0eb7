"""`hf-watermark benchmark`."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..serialization import InvalidInput, write_bytes_atomic
from .loading import silence_loading
from .options import refuse_output
from .progress import begin


EXAMPLE = """Example:

hf-watermark benchmark --init my_benchmark.yaml

hf-watermark benchmark my_benchmark.yaml --output runs/my_benchmark --workers 2
"""
TEMPLATE = Path(__file__).parents[1] / "evaluation" / "matrix" / "template.yaml"


def benchmark(
    config: Annotated[
        Path | None, typer.Argument(help="YAML: methods, backbones, data, attacks, seeds. --init writes one.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="New folder, or one of an earlier run to go on with."),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option("--init", metavar="FILE", help="Write a small config with comments to this new file, and stop."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="NAME=DIR", help="Folder of a parquet data set of the config; may be repeated."
        ),
    ] = None,
    only_table: Annotated[
        bool, typer.Option("--only-table", help="Run nothing; write table, report and cards from finished cells.")
    ] = False,
    reuse: Annotated[
        Path | None,
        typer.Option(
            "--reuse",
            metavar="PARQUET",
            help="Table of an earlier run, maybe somebody else's: its checks are not run again.",
        ),
    ] = None,
    executor: Annotated[
        str, typer.Option("--executor", help="Where cells run: local, slurm or ray. Extra `watch`.")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="Cells at a time: by default one, or all that the cluster takes."),
    ] = None,
    gpus_per_task: Annotated[
        int | None,
        typer.Option("--gpus-per-task", metavar="N", help="GPUs of one cell: by default one where `device` is cuda."),
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", metavar="NAME", help="Of Slurm.")] = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="LIMIT", help="Of one cell, for Slurm, such as 02:00:00.")
    ] = None,
) -> None:
    """
    Train marked models, attack them, and write a table (parquet), a report (HTML) and model cards.

    A run that was stopped goes on where it was, and a cell that fails twice is named while the others go on. The table is the same from any number of
    workers. Keys and seeds follow from the config: a key of a benchmark is no secret.
    """
    if init is not None:
        if config is not None or output is not None:
            raise InvalidInput("--init writes a config and runs nothing; leave out the config and --output")
        refuse_output(init)
        write_bytes_atomic(init, TEMPLATE.read_bytes(), overwrite=False)
        typer.echo(f"wrote {init}; now run: {shlex.join(_words(init, Path('runs/my_benchmark')))}")
        return
    if config is None or output is None:
        raise InvalidInput("give a config and --output DIR, or write a config to start from with --init FILE")
    begin(f"Reading {config}")
    silence_loading()

    from ..evaluation import read_config, run_matrix

    folders = read_folders(data or [])
    chosen = read_config(config, folders)
    # Relative paths only: the cards are published, and folders of a machine are nobody's business.
    config_shown, output_shown = (Path(path.name) if path.is_absolute() else path for path in (config, output))
    words = shlex.join(_words(config_shown, output_shown, [f"{name}=FOLDER" for name in folders]))
    table = run_matrix(
        chosen, output, words, typer.echo, only_table, reuse, executor, workers, gpus_per_task, partition, time
    )
    if table.exists():
        typer.echo(f"wrote {table}, {table.with_name('report.html')} and {table.with_name('model_cards')}")


def _words(config: Path, output: Path, data: Sequence[str] = ()) -> list[str]:
    given = [word for item in data for word in ("--data", item)]
    return ["hf-watermark", "benchmark", str(config), *given, "--output", str(output)]


def read_folders(given: list[str]) -> dict[str, str]:
    folders: dict[str, str] = {}
    for text in given:
        name, separator, folder = text.partition("=")
        if not separator or not folder or name in folders:
            raise InvalidInput(f"--data {text!r}: write NAME=DIR, each name once")
        folders[name] = folder
    return folders
