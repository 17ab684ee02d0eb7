"""Measurements on marked models: accuracy, survival under attack, plots and reports."""

from .survival import accuracy, method_summary, survival_row, survival_table


__all__ = ["accuracy", "method_summary", "survival_row", "survival_table"]
