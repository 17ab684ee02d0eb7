"""
Keys, decoys and owners of the tests come from a stream that starts anew with every test: a test that asks for a p-value fails for a reason,
not one time in a thousand. Salts and nonces of encrypted files stay random. Processes that a test starts are not reached.
"""

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from transformers import set_seed

from hf_watermark import Owner, trainer
from hf_watermark.forgery import key_search
from hf_watermark.keys import claim, watermark_key


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
    modules: tuple[ModuleType, ...] = (trainer, watermark_key, claim, key_search)
    for module in modules:
        module.os = SimpleNamespace(**vars(os) | {"urandom": draw})  # type: ignore[attr-defined]
    Owner.create = classmethod(lambda cls: cls(Ed25519PrivateKey.from_private_bytes(draw(32))))  # type: ignore[method-assign]
