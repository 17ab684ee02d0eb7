"""Packages whose names load when they are first asked for, so that nobody pays for a library that he does not use."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


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
