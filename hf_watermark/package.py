"""The package about itself: its version, names that load when they are first asked for, and what importing it says."""

import logging
from collections.abc import Callable, Mapping
from enum import EnumType
from importlib import import_module
from typing import Any


VERSION = "0.2.0"


def on_first_use(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """
    `__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        package (`str`):
            `__name__` of the package.
        modules (`Mapping[str, str]`):
            The public names, and the module inside the package that holds each.

    Example:

    ```python
    _NAMES = {"GreedyResidualsConfig": "config", "GreedyResidualsTrainer": "trainer"}

    __all__ = sorted(_NAMES)
    __getattr__, __dir__ = on_first_use(__name__, _NAMES)
    ```

    Type checkers read the names from imports under `if TYPE_CHECKING:` in the same file.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{modules[name]}", package), name)

    return get, lambda: sorted(modules)


def silence_imports() -> None:
    """
    Keeps two lines of torch from the user: transformers imports torchao wherever a model is built, and that registers enumerations with torch
    in a way that torch calls outdated.
    """
    logging.getLogger("torch.utils._pytree").addFilter(_is_not_about_an_enumeration)


def _is_not_about_an_enumeration(record: logging.LogRecord) -> bool:
    return not (isinstance(record.args, tuple) and record.args and isinstance(record.args[0], EnumType))
