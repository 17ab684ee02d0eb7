"""The robustness matrix: methods x backbones x data sets x attacks x seeds, resumable cell by cell; its table, report and cards."""

from .benchmark import run_matrix
from .config import MatrixConfig, parse_config, read_config
from .table import read_table


__all__ = ["MatrixConfig", "parse_config", "read_config", "read_table", "run_matrix"]
