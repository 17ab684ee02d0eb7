"""
The table of methods, and the Auto classes. Nothing is loaded before it is used.

Beside the methods of this package it holds those that were installed or registered on this machine. A statement, key or config can only
name a method: where the table does not have it, nothing is looked for, let alone run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .backbones.wrappers import WRAPPERS
from .serialization import InvalidInput, read_json
from .serialization.words import known_names


if TYPE_CHECKING:
    from .configuration import WatermarkConfig
    from .configuration.facts import MethodFacts
    from .training.embedding import Embedding
    from .training.trainer import WatermarkTrainer
    from .verification.verifier import Verifier


# A distribution that brings a method says so: `[project.entry-points."hf_watermark.methods"]`, `my_method = "its_package"`.
ENTRY_POINTS = "hf_watermark.methods"
KINDS = ("Config", "Embedding", "Trainer", "Verifier")


class BrokenMethod(ImportError):
    """A method is in the table and cannot be loaded: the package that brings it is to be repaired, not the claim that names it."""


@dataclass(frozen=True)
class MethodEntry:
    """
    Where one method lives.

    Args:
        module (`str`):
            Its package: it has the classes, and a module `facts` with `FACTS`, facts by method.
        prefix (`str`):
            What the names of its classes begin with; they end in one of `KINDS`.
    """

    method: str
    module: str
    prefix: str

    def load(self, suffix: str) -> Any:
        found = self._of(self.module, self.prefix + suffix)
        if getattr(found, "method", self.method) != self.method:
            raise BrokenMethod(f"{self.module}.{found.__name__} is of {found.method!r}, not of {self.method!r}")
        return found

    @property
    def facts(self) -> "MethodFacts":
        facts = self._of(f"{self.module}.facts", "FACTS")
        if self.method not in facts:
            raise BrokenMethod(f"{self.module}.facts.FACTS has no method {self.method!r}")
        return facts[self.method]

    @property
    def access(self) -> str:
        return self.facts.access

    def _of(self, module: str, name: str) -> Any:
        try:
            return getattr(import_module(module), name)
        except Exception as error:
            if self.method in BUILT_IN:
                raise
            raise BrokenMethod(
                f"method {self.method!r} cannot be loaded: {type(error).__name__}: {error}; repair or remove the package "
                f"{module.partition('.')[0]!r}"
            ) from error


def _built_in(method: str, prefix: str, module: str = "") -> MethodEntry:
    return MethodEntry(method, f"{__package__}.methods.{module or method}", prefix)


BUILT_IN = {
    entry.method: entry
    for entry in (
        _built_in("greedy_residuals", "GreedyResiduals"),
        _built_in("function_coupled", "FunctionCoupled"),
        _built_in("certified", "Certified"),
        _built_in("watermas", "WaterMAS"),
        _built_in("usp", "USP", "soft_label"),
        _built_in("csp", "CSP", "soft_label"),
    )
}
# Model types that stand around a backbone.
WRAPPERS |= {
    "hf_watermark_perturbed_output": f"{__package__}.methods.soft_label.modeling",
    "hf_watermark_preprocessed": f"{__package__}.attacks.preprocessing",
    "hf_watermark_smoothed": f"{__package__}.methods.certified.modeling",
}
_registered: dict[str, MethodEntry] = {}


@cache
def _installed() -> dict[str, MethodEntry]:
    """By entry point. Only their names are read here."""
    return {point.name: _outside(point.name, point.module) for point in entry_points(group=ENTRY_POINTS)}


def _outside(method: str, module: str, prefix: str | None = None) -> MethodEntry:
    return MethodEntry(method, module, prefix or "".join(word.capitalize() for word in method.split("_")))


def register_method(method: str, module: str, prefix: str | None = None) -> None:
    """
    Makes a method of your own known in this process. A package makes it known by an entry point of the group `hf_watermark.methods`, whose
    name is the method's and whose value is the package.

    Args:
        method (`str`):
            Its name, in lower case. The names of built-in methods are taken.
        module (`str`):
            The package, with what [`MethodEntry`] says.
        prefix (`str`, *optional*):
            `ToySigns` for the method `toy_signs` by default.

    Raises:
        [`~serialization.InvalidInput`]: for a name that is taken or no name, or a package that is not installed.

    Example:

    ```python
    >>> from hf_watermark.mapping import register_method

    >>> register_method("toy_signs", "toy_method")
    ```
    """
    if method in BUILT_IN or not method.isidentifier() or method != method.lower():
        raise InvalidInput(f"method {method!r}: take a name of lower-case letters that no built-in method has")
    if method in _registered and _registered[method].module != module:
        raise InvalidInput(
            f"method {method!r} is registered already, by {_registered[method].module}; take another name"
        )
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise InvalidInput(f"method {method!r}: no package {module!r} can be imported; install it first")
    _registered[method] = _outside(method, module, prefix)


class MethodTable(Mapping[str, MethodEntry]):
    """Every method that this machine knows: built in, registered, installed, in this order."""

    def __getitem__(self, method: str) -> MethodEntry:
        return BUILT_IN.get(method) or self._all()[method]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    @staticmethod
    def _all() -> dict[str, MethodEntry]:
        known = BUILT_IN | _registered
        return known | {name: entry for name, entry in _installed().items() if name not in known}


METHODS = MethodTable()


def method_entry(method: str) -> MethodEntry:
    if method not in METHODS:
        raise InvalidInput(
            f"method {method!r} does not exist on this machine: {known_names(method, METHODS)}, or install the package that brings it"
        )
    return METHODS[method]


class AutoWatermarkConfig:
    """
    Builds the config class that a JSON names.

    Example:

    ```python
    >>> AutoWatermarkConfig.from_dict(GreedyResidualsConfig(bits=256).to_dict()).bits
    256
    >>> AutoWatermarkConfig.from_pretrained("config").method
    'watermas'
    ```
    """

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "WatermarkConfig":
        """The config that [`WatermarkConfig.to_dict`] wrote, whatever its method."""
        return method_entry(str(data.get("method"))).load("Config").from_dict(data)

    @staticmethod
    def from_pretrained(directory: str | Path) -> "WatermarkConfig":
        """The config that [`WatermarkConfig.save_pretrained`] wrote into a folder, whatever its method."""
        from .configuration import CONFIG_NAME

        return AutoWatermarkConfig.from_dict(read_json(Path(directory) / CONFIG_NAME, allow_floats=True))


class AutoEmbedding:
    """Finds the class that puts a method's mark in."""

    @staticmethod
    def for_method(method: str) -> "type[Embedding]":
        return method_entry(method).load("Embedding")


class AutoTrainer:
    """
    Finds the trainer class of a method.

    Example:

    ```python
    >>> AutoTrainer.for_method("watermas").__name__
    'WaterMASTrainer'
    ```
    """

    @staticmethod
    def for_method(method: str) -> "type[WatermarkTrainer]":
        """A subclass of [`WatermarkTrainer`]."""
        return method_entry(method).load("Trainer")


class AutoVerifier:
    """
    Finds the verifier class of a method.

    Example:

    ```python
    >>> AutoVerifier.for_method("watermas").access
    <Access.WEIGHTS: 'weights'>
    ```
    """

    @staticmethod
    def for_method(method: str) -> "type[Verifier]":
        """A subclass of [`~verification.verifier.Verifier`]."""
        return method_entry(method).load("Verifier")
