"""
The lazy table of methods, and the Auto classes.

The table alone needs no other module: commands list it before anything heavy is imported. Configs and files come in where a method is loaded.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .serialization import InvalidInput, read_json


if TYPE_CHECKING:
    from .configuration import WatermarkConfig
    from .training.embedding import Embedding
    from .training.trainer import WatermarkTrainer
    from .verification.verifier import Verifier


@dataclass(frozen=True)
class MethodEntry:
    """Where the classes of one method live, and a line for people."""

    module: str
    prefix: str
    access: str
    summary: str

    def load(self, suffix: str) -> Any:
        return getattr(import_module(f"hf_watermark.methods.{self.module}"), self.prefix + suffix)


METHODS = {
    "greedy_residuals": MethodEntry(
        "greedy_residuals", "GreedyResiduals", "weights", "bits in the signs of key-drawn weight groups"
    ),
    "function_coupled": MethodEntry(
        "function_coupled", "FunctionCoupled", "labels", "rules on images fused of two classes of the training data"
    ),
    "certified": MethodEntry(
        "certified", "Certified", "labels", "triggers that hold under parameter noise, with a proven radius"
    ),
    "watermas": MethodEntry(
        "watermas", "WaterMAS", "weights", "bits in the signs of single weights that the loss is sharp around"
    ),
    "usp": MethodEntry("soft_label", "USP", "probabilities", "a key-drawn template in the small probabilities"),
    "csp": MethodEntry("soft_label", "CSP", "probabilities", "a code word per licensee in the small probabilities"),
}


def method_entry(method: str) -> MethodEntry:
    if method not in METHODS:
        raise InvalidInput(f"method {method!r} does not exist; choose one of {', '.join(METHODS)}")
    return METHODS[method]


class AutoWatermarkConfig:
    """Builds the config class that a JSON names."""

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "WatermarkConfig":
        return method_entry(str(data.get("method"))).load("Config").from_dict(data)

    @staticmethod
    def from_pretrained(directory: str | Path) -> "WatermarkConfig":
        from .configuration import CONFIG_NAME

        return AutoWatermarkConfig.from_dict(read_json(Path(directory) / CONFIG_NAME, allow_floats=True))


class AutoEmbedding:
    """Finds the class that puts a method's mark in."""

    @staticmethod
    def for_method(method: str) -> "type[Embedding]":
        return method_entry(method).load("Embedding")


class AutoTrainer:
    """Finds the trainer class of a method."""

    @staticmethod
    def for_method(method: str) -> "type[WatermarkTrainer]":
        return method_entry(method).load("Trainer")


class AutoVerifier:
    """Finds the verifier class of a method."""

    @staticmethod
    def for_method(method: str) -> "type[Verifier]":
        return method_entry(method).load("Verifier")
