"""Refusals that the statistics share."""

import numpy as np


def check_probability(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}={value}: pass a number strictly between 0 and 1.")


def check_range(name: str, values: np.ndarray, largest: float) -> None:
    outside = np.flatnonzero(~((values >= 0) & (values <= largest)))
    if outside.size:
        raise ValueError(f"{name}[{outside[0]}]={values[outside[0]]}: pass {name} in [0, {largest}].")


def check_log2_p(log2_p: float) -> None:
    if not log2_p <= 0:
        raise ValueError(f"log2_p={log2_p}: the base-2 logarithm of a p-value is at most 0.")
