"""
Keys, decoys and owners of the tests come from a stream that starts anew with every test: a test that asks for a p-value fails for a reason,
not one time in a thousand. Salts and nonces of encrypted files stay random. Processes that a test starts are not reached.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from hf_watermark.keys import entropy


_state: dict[str, Any] = {"name": "start", "drawn": 0}


def draw(count: int) -> bytes:
    _state["drawn"] += 1
    return hashlib.shake_256(f"{_state['name']}/{_state['drawn']}".encode()).digest(count)


def start(name: str) -> None:
    _state.update(name=name, drawn=0)
    set_seed(0)


@contextmanager
def stream(name: str) -> Iterator[None]:
    """What is shared between tests comes from a stream of its own, whichever test makes it."""
    before, generators = dict(_state), (random.getstate(), np.random.get_state(), torch.get_rng_state())
    start(name)
    try:
        yield
    finally:
        _state.update(before)
        for restore, state in zip(
            (random.setstate, np.random.set_state, torch.set_rng_state), generators, strict=True
        ):
            restore(state)


def install() -> None:
    entropy.draw = draw
