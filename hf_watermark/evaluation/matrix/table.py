"""The table of a benchmark: one row per finished check, as a parquet file."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

from ...serialization import InvalidInput, read_json, write_bytes_atomic, write_json_atomic
from ..retention import embedding_loss, stealing_loss
from .cells import AttackCell, Cell, ModelCell, Store, attack_cells, model_cells
from .config import CONFIG_BYTES, MatrixConfig
from .losses import best_retention


TABLE, STORED_CONFIG = "results.parquet", "matrix.json"
MOST_TABLE_BYTES = 256 * 2**20
# What a rerun on the same machine may change; everything else is the same to the last digit.
CLOCK_COLUMNS = ("cpu_seconds", "seconds", "training_cpu_seconds", "hardware", "versions")


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


def table_row(
    cell: AttackCell, result: dict[str, Any], marked: dict[str, Any], twin: dict[str, Any]
) -> dict[str, Any]:
    accuracy = result.get("accuracy")
    trials = result.get("trials") or 0
    return {
        "method": cell.model.method,
        "methods": [item["method"] for item in cell.model.configs],
        "backbone": cell.model.backbone,
        "data": cell.model.data,
        "seed": cell.model.seed,
        "attack": cell.label,
        "attack_name": cell.options["name"],
        "attack_options": json.dumps({key: value for key, value in cell.options.items() if key != "name"}),
        "epochs": float(result.get("epochs", 0.0)),
        "steps": int(result.get("steps", 0)),
        "examples": int(result.get("examples", 0)),
        "queries": int(result.get("queries", 0)),
        "attacker_images": int(result.get("attacker_images", 0)),
        "accuracy": accuracy,
        "marked_accuracy": marked["accuracy"],
        "twin_accuracy": twin["accuracy"],
        "stealing_loss": None if accuracy is None else stealing_loss(twin["accuracy"], accuracy),
        "embedding_loss": embedding_loss(twin["accuracy"], marked["accuracy"]),
        "retention": None if result.get("log2_p") is None else best_retention(result["methods"]),
        "matches": result.get("matches"),
        "trials": result.get("trials"),
        "match_rate": result["matches"] / trials if trials else None,
        "log2_p": result.get("log2_p"),
        "level": result.get("level"),
        "verdict": result["verdict"],
        "reason": result.get("reason"),
        "parts": [{"method": name, **part} for name, part in result.get("methods", {}).items()],
        "not_checked": result.get("not_checked", []),
        "relative_distance": result.get("relative_distance"),
        "check_queries": int(result.get("check_queries", 0)),
        "cpu_seconds": result["cpu_seconds"],
        "seconds": result["seconds"],
        "training_cpu_seconds": marked["cpu_seconds"],
        "parameters": marked["parameters"],
        "train_images": marked["train_images"],
        "test_images": marked["test_images"],
        "training_epochs": marked["epochs"],
        "precision": cell.model.precision,
        "device": cell.model.device,
        "hardware": result["hardware"],
        "versions": ", ".join(f"{name} {number}" for name, number in sorted(result["versions"].items())),
        "cell": cell.id,
        "model_cell": cell.model.id,
    }


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


def results_of(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What [`table_row`] made a row of: the results of the check, of the marked model, and of the twin as far as rows tell."""
    check = {name: row[name] for name in CHECK_COLUMNS if row[name] is not None}
    check["methods"] = {
        part["method"]: {name: value for name, value in part.items() if name != "method"} for part in row["parts"]
    }
    check["versions"] = dict(entry.rsplit(" ", 1) for entry in row["versions"].split(", "))
    size = {"parameters": row["parameters"], "train_images": row["train_images"], "test_images": row["test_images"]}
    size["epochs"] = row["training_epochs"]
    marked = {"accuracy": row["marked_accuracy"], "cpu_seconds": row["training_cpu_seconds"], **size}
    return check, marked, {"accuracy": row["twin_accuracy"], **size}


def table_schema() -> Any:
    """The columns and their types; readable without this library."""
    import pyarrow as pa

    part = pa.struct(
        [
            ("method", pa.string()),
            ("matches", pa.int64()),
            ("trials", pa.int64()),
            ("log2_p", pa.float64()),
            ("level", pa.string()),
            ("verdict", pa.string()),
        ]
    )
    text = ["method", "backbone", "data", "attack", "attack_name", "attack_options", "level", "verdict", "reason"]
    text += ["precision", "device", "hardware", "versions", "cell", "model_cell"]
    whole = [
        "seed",
        "steps",
        "examples",
        "queries",
        "attacker_images",
        "matches",
        "trials",
        "check_queries",
        "parameters",
    ]
    whole += ["train_images", "test_images"]
    types: dict[str, Any] = dict.fromkeys(text, pa.string()) | dict.fromkeys(whole, pa.int64())
    types |= {"methods": pa.list_(pa.string()), "not_checked": pa.list_(pa.string()), "parts": pa.list_(part)}
    return pa.schema([(name, types.get(name, pa.float64())) for name in COLUMNS])


# Columns that stand in the result of a check as they are.
CHECK_COLUMNS = (
    *("epochs", "steps", "examples", "queries", "attacker_images", "accuracy", "matches", "trials", "log2_p", "level"),
    *("verdict", "reason", "not_checked", "relative_distance", "check_queries", "cpu_seconds", "seconds", "hardware"),
)
COLUMNS = (
    *("method", "methods", "backbone", "data", "seed"),
    *("attack", "attack_name", "attack_options", "epochs", "steps", "examples", "queries", "attacker_images"),
    *("accuracy", "marked_accuracy", "twin_accuracy", "stealing_loss", "embedding_loss", "retention"),
    *("matches", "trials", "match_rate", "log2_p", "level", "verdict", "reason", "parts", "not_checked"),
    *("relative_distance", "check_queries", "cpu_seconds", "seconds", "training_cpu_seconds"),
    *("parameters", "train_images", "test_images", "training_epochs", "precision", "device", "hardware", "versions"),
    *("cell", "model_cell"),
)


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


def without_clocks(row: dict[str, Any]) -> dict[str, Any]:
    """What of a row is the same on every run."""
    return {name: value for name, value in row.items() if name not in CLOCK_COLUMNS}
