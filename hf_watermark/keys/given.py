"""Secrets that somebody gave by their path."""

import reprlib
from typing import Any

from ..serialization import InvalidInput


def refuse_unloaded(argument: str, value: Any, *kinds: Any) -> None:
    """Raises [`~serialization.InvalidInput`] where an argument is not of one of these classes, which have a `load`."""
    if not isinstance(value, kinds):
        loads = " or ".join(f"{kind.__name__}.load(...)" for kind in kinds)
        raise InvalidInput(f"`{argument}` is {reprlib.repr(value)}: give what {loads} returns")
