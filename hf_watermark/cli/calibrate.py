"""`hf-watermark calibrate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .loading import load_model, silence_loading
from .options import refuse_output
from .progress import begin


if TYPE_CHECKING:
    from ..verification.null_table import NullTable

EXAMPLE = "Example:\n\nhf-watermark calibrate --models 20 --keys 50 --output null_table.json"


def calibrate(
    output: Annotated[Path, typer.Option("--output", metavar="FILE.json", help="New file for the null table.")],
    models: Annotated[int, typer.Option("--models", min=1, max=10_000, help="Unmarked models to train.")] = 20,
    keys: Annotated[int, typer.Option("--keys", min=1, max=10**6, help="Keys per method to try on each.")] = 50,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="May be repeated; all methods by default.")
    ] = None,
    backbone: Annotated[str, typer.Option("--backbone", help="A preset of the benchmark.")] = "small_resnet",
    data: Annotated[
        str, typer.Option("--data", metavar="PATH", help="'digits', 'synthetic', or a folder of parquet files.")
    ] = "digits",
    epochs: Annotated[float, typer.Option("--epochs", help="Of each training.")] = 8,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Of each training (AdamW).")] = 4e-3,
    null_model: Annotated[
        list[Path] | None,
        typer.Option("--null-model", metavar="DIR", help="Use this unmarked model instead of training; repeat it."),
    ] = None,
) -> None:
    """
    Try fresh keys on models that carry no mark, and write a null table for hf-watermark verify --null-table.

    The table is a control: it can make a verdict weaker and never a p-value smaller. Exit status: 0 written, 1 written, but some method passed
    its thresholds more often than allowed, 2 bad usage.
    """
    begin("Trying keys on models without a mark")
    refuse_output(output)
    silence_loading()

    from ..evaluation.matrix.config import BackboneSpec, DataSpec, Training
    from ..evaluation.matrix.data import load_data
    from ..evaluation.nulls import default_configs, measure_null_table, train_null_models
    from ..mapping import METHODS
    from ..verification.null_table import write_null_table

    spec = DataSpec(
        source="parquet" if data not in ("digits", "synthetic") else data,  # type: ignore[arg-type]
        folder=data if data not in ("digits", "synthetic") else None,
        training=Training(epochs=epochs, learning_rate=learning_rate, batch_size=64),
    )
    loaded = load_data(spec)
    configs = default_configs(method or list(METHODS))
    nulls: Any = (
        map(load_model, null_model)
        if null_model
        else train_null_models(BackboneSpec(preset=backbone), spec, loaded, models)
    )
    names = ("given models" if null_model else backbone, data if spec.folder is None else Path(data).name)
    total = len(null_model) if null_model else models
    table = measure_null_table(
        nulls, loaded, configs, keys, names, lambda done: typer.echo(f"null model {done} of {total}", err=True)
    )
    write_null_table(table, output)
    show(table)
    alarms = [alarm for entry in table.entries if (alarm := entry.alarm())]
    for alarm in alarms:
        typer.echo(f"alarm: {alarm}", err=True)
    raise typer.Exit(1 if alarms else 0)


def show(table: "NullTable") -> None:
    shown = Table("method", "pairs", *(f"p ≤ {row.p:g}" for row in table.entries[0].exceedances), "smallest log2 p")
    for entry in table.entries:
        counts = [str(row.count) for row in entry.exceedances]
        shown.add_row(entry.method, str(entry.pairs), *counts, f"{entry.smallest_log2_p:.1f}")
    Console().print(shown)
