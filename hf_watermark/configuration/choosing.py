"""What people write for a config: an object, the name of a method, or fields."""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..serialization import InvalidInput
from .config import FORMAT_VERSION, WatermarkConfig


Find = Callable[[str], type[WatermarkConfig]]
FORMS = "give a config such as GreedyResidualsConfig(), the name of a method, or a dict such as {'method': ..., 'bits': 256}"


def as_configs(given: Any, find: Find, methods: Sequence[str] | None = None) -> list[WatermarkConfig]:
    """
    Configs from what a user gave.

    Args:
        given ([`WatermarkConfig`], `str`, `dict`, a list of these, or `None`):
            A name means the method's defaults, a dict the fields of one config, `None` the defaults of all `methods`.
        find (`Callable`):
            The config class of a method; raises where it is not known.
        methods (`Sequence[str]`, *optional*):
            Those that are wanted, where that is known. Of a single one, a dict need not name it.

    Raises:
        [`~serialization.InvalidInput`]: when it is none of these, or a field is refused.
    """
    if given is None and methods:
        return [find(method)() for method in methods]
    several = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    items: Sequence[Any] = given if several else [given]
    if not items:
        raise InvalidInput(f"no method was named; {FORMS}")
    return [_as_config(item, find, methods) for item in items]


def _as_config(given: Any, find: Find, methods: Sequence[str] | None) -> WatermarkConfig:
    if isinstance(given, WatermarkConfig):
        return given
    if isinstance(given, str):
        return find(given)()
    if isinstance(given, Mapping):
        only = methods[0] if methods and len(methods) == 1 else None
        method = given.get("method", only)
        if not isinstance(method, str):
            raise InvalidInput(
                f"the dict {reprlib.repr(dict(given))} does not say of which method it is; add 'method': ..."
            )
        return find(method).from_dict({"format_version": FORMAT_VERSION, **given, "method": method})
    if isinstance(given, type):
        raise InvalidInput(f"{given.__name__} is a class: write {given.__name__}()")
    raise InvalidInput(f"{reprlib.repr(given)} is no config; {FORMS}")
