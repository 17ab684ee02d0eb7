"""What the terminal shows of a quickstart: a bar over its stages, and two tables at the end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers import TrainerCallback

from ..evidence import in_figures
from .report import attacked_rows, percent


class Stages:
    """One bar over all stages, and one for the training run inside a stage."""

    def __init__(self, console: Console, total: int):
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self.progress = Progress(*columns, console=console, transient=True)
        self.overall = self.progress.add_task("quickstart", total=total)

    def __enter__(self) -> "Stages":
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    @contextmanager
    def __call__(self, text: str) -> Iterator[TrainerCallback]:
        begin = time.perf_counter()
        self.progress.update(self.overall, description=text)
        yield _TrainingBar(self.progress)
        self.progress.advance(self.overall)
        self.progress.console.print(f"[green]done[/] {text} [dim]({time.perf_counter() - begin:.1f} s)[/]")


class _TrainingBar(TrainerCallback):
    def __init__(self, progress: Progress):
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.task = self.progress.add_task("  training steps", total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.remove_task(self.task)


def show_table(record: dict[str, Any], output: Path, console: Console) -> None:
    methods = list(record["marked"]["row"]["methods"])
    table = Table(title="Survival of the mark (log2 p per method; a claim needs -128)", title_justify="left")
    table.add_column("model", no_wrap=True)
    for name in ("accuracy", *(method.replace("_", "\n") for method in methods)):
        table.add_column(name, justify="right")
    table.add_column("outcome", no_wrap=True)
    unattacked = [record[name]["row"] for name in ("twin", "marked")]
    for row in [*(row | {"fate": row["verdict"]} for row in unattacked), *attacked_rows(record)]:
        strengths = [in_figures(row["methods"][method]["log2_p"]) for method in methods if method in row["methods"]]
        table.add_row(row["attack"], percent(row["accuracy"]), *strengths, row["fate"])
    console.print(table)
    claims = Table(title="False claims", title_justify="left")
    for name in ("forgery", "outcome", "why"):
        claims.add_column(name)
    for forgery in record["forgeries"]:
        evidence = forgery["evidence"]
        outcome = "accepted" if forgery["passed"] else evidence["verdict"]
        claims.add_row(forgery["name"].replace("_", " "), outcome, forgery["refused"] or evidence["reason"])
    console.print(claims)
    console.print(f"Report: {output / 'report.html'}", soft_wrap=True)
    console.print(f"Secret: {output / 'key'} (keep it out of the model folder and off the Hub)", soft_wrap=True)
