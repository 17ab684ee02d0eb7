"""The table of a benchmark: one row per finished check, as a parquet file."""

import hashlib
import io
from pathlib import Path
from typing import Any

from ...serialization import InvalidInput, read_json, write_bytes_atomic, write_json_atomic
from .cells import Cell, ModelCell, Store, attack_cells, model_cells
from .columns import COLUMNS, PART, results_of, table_row
from .config import CONFIG_BYTES, MatrixConfig


TABLE, STORED_CONFIG = "results.parquet", "matrix.json"
MOST_TABLE_BYTES = 256 * 2**20


def cells_of_phase(config: MatrixConfig, phase: str) -> list[Cell]:
    """Cells of `models` or `attacks`, in the order in which one process runs them."""
    return [*model_cells(config)] if phase == "models" else [*attack_cells(config)]


def store_config(config: MatrixConfig, folder: Path) -> None:
    """Keeps what was asked for beside the results."""
    write_json_atomic(folder / STORED_CONFIG, config.plain())


def read_stored_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / STORED_CONFIG, 4 * CONFIG_BYTES, allow_floats=True)


def table_rows(config: MatrixConfig, store: Store) -> list[dict[str, Any]]:
    """Rows of all finished checks in the order of the config; a running benchmark has fewer."""
    models: dict[str, dict[str, Any] | None] = {}

    def model_result(cell: ModelCell) -> dict[str, Any] | None:
        if cell.id not in models:
            models[cell.id] = store.result(cell)
        return models[cell.id]

    rows = []
    for cell in attack_cells(config):
        result, marked, twin = store.result(cell), model_result(cell.model), model_result(cell.model.twin)
        if result is not None and marked is not None and twin is not None:
            rows.append(table_row(cell, result, marked, twin))
    return rows


def take_over(config: MatrixConfig, store: Store, rows: list[dict[str, Any]]) -> int:
    """
    Makes finished cells of the rows of a table where the config has the same cell and the folder has no result of it.

    Returns:
        `int`: how many checks were taken over.
    """
    checks = {cell.id: cell for cell in attack_cells(config)}
    taken = 0
    for row in rows:
        cell = checks.get(row["cell"])
        if cell is None:
            continue
        check, marked, twin = results_of(row)
        for model, result in ((cell.model, marked), (cell.model.twin, twin)):
            if not store.done(model) and not store.model_folder(model).exists():
                store.write(model, result)
        if not store.done(cell):
            store.write(cell, check)
            taken += 1
    return taken


def table_schema() -> Any:
    """The columns and their types; readable without this library."""
    import pyarrow as pa

    types = {"text": pa.string(), "whole": pa.int64(), "number": pa.float64(), "texts": pa.list_(pa.string())}
    part = pa.struct([(name, types[kind]) for name, kind in PART.items()])
    return pa.schema([(name, (types | {"parts": pa.list_(part)})[column.kind]) for name, column in COLUMNS.items()])


def write_table(rows: list[dict[str, Any]], path: Path) -> Path:
    """Writes the rows as parquet, completely or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = pa.Table.from_pylist(rows, schema=table_schema())
    file = io.BytesIO()
    parquet.write_table(table, file, compression="zstd")
    write_bytes_atomic(path, file.getvalue())
    return path


def read_table(path: str | Path) -> list[dict[str, Any]]:
    """
    Rows of a table that [`write_table`] wrote, maybe on another machine. `datasets.load_dataset("parquet", data_files=...)` reads it too.

    Raises:
        [`~serialization.InvalidInput`]: when the file is missing, too large, no parquet, or lacks columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = Path(path)
    if not path.is_file():
        raise InvalidInput(f"{path}: no such file; `hf-watermark benchmark` writes {TABLE}")
    if path.stat().st_size > MOST_TABLE_BYTES:
        raise InvalidInput(f"{path}: is larger than {MOST_TABLE_BYTES} bytes")
    try:
        table = parquet.read_table(path)
        return table.select(list(COLUMNS)).cast(table_schema()).to_pylist()
    except KeyError as error:
        raise InvalidInput(f"{path}: is no table of a benchmark ({str(error)[:200]})") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InvalidInput(f"{path}: cannot be read ({str(error)[:200]})") from None


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
