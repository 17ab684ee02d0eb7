"""`hf-watermark benchmark`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..serialization import InvalidInput
from .loading import silence_loading


EXAMPLE = "Example:\n\nhf-watermark benchmark examples/benchmarks/matrix_digits.yaml --output runs/matrix"


def benchmark(
    config: Annotated[Path, typer.Argument(help="YAML: methods, backbones, data, attacks, seeds.")],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="New folder, or one of an earlier run to go on with.")
    ],
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
) -> None:
    """
    Train marked models, attack them, and write a table (parquet), a report (HTML) and model cards.

    A run that was stopped goes on where it was. Under accelerate launch or torchrun the work is spread over all processes. Keys and seeds follow from the
    config: a key of a benchmark is no secret.
    """
    silence_loading()

    from ..evaluation import read_config, run_matrix

    folders = read_folders(data or [])
    chosen = read_config(config, folders)
    # Relative paths only: the cards are published, and folders of a machine are nobody's business.
    shown = [path.name if path.is_absolute() else str(path) for path in (config, output)]
    words = ["hf-watermark", "benchmark", shown[0], "--output", shown[1]]
    table = run_matrix(chosen, output, shlex.join(words), typer.echo, only_table, reuse)
    if table.exists():
        typer.echo(f"wrote {table}, {table.with_name('report.html')} and {table.with_name('model_cards')}")


def read_folders(given: list[str]) -> dict[str, str]:
    folders: dict[str, str] = {}
    for text in given:
        name, separator, folder = text.partition("=")
        if not separator or not folder or name in folders:
            raise InvalidInput(f"--data {text!r}: write NAME=DIR, each name once")
        folders[name] = folder
    return folders
