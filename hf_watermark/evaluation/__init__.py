"""Measurements on marked models: accuracy, survival under attack, benchmarks, plots and reports. Public names load on first use."""

from typing import TYPE_CHECKING

from ..package import on_first_use


_NAMES = {
    "MatrixConfig": "matrix.config",
    "accuracy": "survival",
    "method_summary": "survival",
    "parse_config": "matrix.config",
    "read_config": "matrix.config",
    "read_table": "matrix.table",
    "run_matrix": "matrix.benchmark",
    "survival_row": "survival",
    "survival_table": "survival",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605
__getattr__, __dir__ = on_first_use(__name__, _NAMES)


if TYPE_CHECKING:
    from .matrix.benchmark import run_matrix as run_matrix
    from .matrix.config import MatrixConfig as MatrixConfig
    from .matrix.config import parse_config as parse_config
    from .matrix.config import read_config as read_config
    from .matrix.table import read_table as read_table
    from .survival import accuracy as accuracy
    from .survival import method_summary as method_summary
    from .survival import survival_row as survival_row
    from .survival import survival_table as survival_table
