"""The robustness matrix: methods x backbones x data sets x attacks x seeds, resumable cell by cell; its table, report and cards."""
