"""`WatermarkConfig`: the public hyper-parameters of a method. Never a secret, never part of `TrainingArguments`."""

import dataclasses
import inspect
import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Self, get_args, get_origin

from ..serialization import InvalidInput, read_json, write_json_atomic
from ..serialization.words import known_names


CONFIG_NAME = "watermark_config.json"
FORMAT_VERSION = 1


class CheckedWhenMade(type):
    """
    Checks the fields of every config at one place: their names and types before the method's own `__post_init__` asks for their ranges, and
    afterwards that no number is left that is none.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name in kwargs:
            if name not in fields:
                raise ValueError(f"unknown field {name!r} for method {cls.method!r}: {known_names(name, fields)}")  # type: ignore[attr-defined]
        positional = [cls._taken(field, value) for field, value in zip(fields.values(), args, strict=False)]
        named = {name: cls._taken(fields[name], value) for name, value in kwargs.items()}
        config = super().__call__(*positional, *args[len(fields) :], **named)
        for name in fields:
            value = getattr(config, name)
            require(not isinstance(value, float) or math.isfinite(value), name, value, "give a finite number")
        return config

    @property
    def __signature__(cls) -> inspect.Signature:
        """The fields, for `help` and editors: they would show `__call__`."""
        made = inspect.signature(cls.__init__)  # type: ignore[misc]
        return made.replace(parameters=list(made.parameters.values())[1:])

    def _taken(cls, field: dataclasses.Field, value: Any) -> Any:
        """The value as it is stored, or a sentence about its type."""
        if field.type is float and type(value) is int:
            # What people write; and canonical JSON, in which keys are stored, writes 1.0 as 1.
            return float(value) if abs(value) < 2**1000 else math.inf
        try:
            for check in getattr(cls, "__validators__", {}).get(field.name, ()):  # those of `@strict`
                check(value)
        except (TypeError, ValueError):
            require(False, field.name, value, f"give {' or '.join(_in_words(field.type))}")
        return value


@dataclass
class WatermarkConfig(metaclass=CheckedWhenMade):
    """
    Base class of all method configs. Subclasses are `@strict @dataclass` classes: an unknown field, or a value of the wrong type or outside
    its range, is refused on construction.

    Raises:
        `ValueError`: for a value that is refused; it names the field, the value and what is allowed.

    Example:

    ```python
    >>> from hf_watermark import GreedyResidualsConfig

    >>> config = GreedyResidualsConfig(bits=256)
    >>> GreedyResidualsConfig.from_dict(config.to_dict()) == config
    True
    ```
    """

    method: ClassVar[str]
    # Fields to raise where training left too weak a mark; of these, the ones that the method has.
    stronger: ClassVar[tuple[str, ...]] = ("strength", "subkeys")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the method's name, a format version and all fields."""
        return {"method": self.method, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """
        The config that `to_dict` wrote.

        Raises:
            [`~serialization.InvalidInput`]: for another method, a newer format, an unknown field or a refused value.
        """
        fields = dict(data)
        method, version = fields.pop("method", None), fields.pop("format_version", None)
        if method != cls.method:
            raise InvalidInput(f"config: method is {method!r}, {cls.__name__} reads {cls.method!r}")
        if version != FORMAT_VERSION:
            raise InvalidInput(
                f"config: format_version is {version!r}, this library reads {FORMAT_VERSION}; update hf_watermark"
            )
        try:
            return cls(**fields)
        except ValueError as error:
            raise InvalidInput(f"config: {error}") from None

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes `watermark_config.json` into a folder, which is made if need be."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_json_atomic(Path(save_directory) / CONFIG_NAME, self.to_dict())

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """The config that `save_pretrained` wrote; errors as in `from_dict`."""
        return cls.from_dict(read_json(Path(directory) / CONFIG_NAME, allow_floats=True))


def require(condition: bool, field: str, value: Any, advice: str) -> None:
    """Raises a `ValueError` that names the field, its value and what to do."""
    if not condition:
        raise ValueError(f"`{field}` is {reprlib.repr(value)}: {advice}")


def require_target(config: Any) -> None:
    """The ranges of what a mark that is taught by feedback is wanted to reach, and may cost."""
    require(
        config.target_log2_p == 0 or -256 <= config.target_log2_p <= -16,
        "target_log2_p",
        config.target_log2_p,
        "choose -256 to -16, such as -96, or 0 for no target",
    )
    require(0 < config.max_loss <= 100, "max_loss", config.max_loss, "choose points of accuracy in (0, 100]")


_TYPES = {int: "a whole number", float: "a number", str: "text", bytes: "bytes", list: "a list", NoneType: "None"}


def _in_words(kind: Any) -> Iterator[str]:
    """The types that a field allows."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is list:
        yield f"a list of {' or '.join(word for item in inner for word in _in_words(item))}"
    elif inner:
        for item in inner:
            yield from _in_words(item)
    else:
        yield _TYPES.get(origin, getattr(origin, "__name__", str(origin)))
