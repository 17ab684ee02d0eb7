"""`hf-watermark quickstart`."""

from pathlib import Path
from typing import Annotated

import typer

from .progress import begin


EXAMPLE = "Example:\n\nhf-watermark quickstart --output runs/quickstart"


def quickstart(
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for everything it makes.")] = Path(
        "runs/quickstart"
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of data order and initialisation.")] = 0,
) -> None:
    """Mark, attack and verify a small model on handwritten digits; nothing is downloaded, it takes a few minutes."""
    begin(f"Marking, attacking and verifying a small model in {output}")

    from ..evaluation.quickstart import run_quickstart

    run_quickstart(output, seed)
