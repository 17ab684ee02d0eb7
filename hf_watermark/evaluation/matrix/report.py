def write_matrix_report(*a, **k): pass
