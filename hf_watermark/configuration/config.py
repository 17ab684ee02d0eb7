"""`WatermarkConfig`: the public hyper-parameters of a method. Never a secret, never part of `TrainingArguments`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub.errors import StrictDataclassError

from ..serialization import InvalidInput, read_json, write_json_atomic


CONFIG_NAME = "watermark_config.json"
FORMAT_VERSION = 1


@dataclass
class WatermarkConfig:
    """
    Base class of all method configs. Subclasses are `@strict @dataclass` classes: a value of the wrong type or outside its range
    is refused on construction with a message that names the field.

    Example:

    ```python
    >>> from hf_watermark import GreedyResidualsConfig

    >>> config = GreedyResidualsConfig(bits=256)
    >>> GreedyResidualsConfig.from_dict(config.to_dict()) == config
    True
    ```
    """

    method: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.method, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """
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
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise InvalidInput(f"config: unknown field {unknown[0]!r} for method {cls.method!r}")
        for field in dataclasses.fields(cls):
            # Canonical JSON, in which keys are stored, writes 1.0 as 1.
            if field.type is float and type(fields.get(field.name)) is int:
                fields[field.name] = float(fields[field.name])
        try:
            return cls(**fields)
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise InvalidInput(f"config: {error}") from None

    def save_pretrained(self, save_directory: str | Path) -> None:
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_json_atomic(Path(save_directory) / CONFIG_NAME, self.to_dict())

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        return cls.from_dict(read_json(Path(directory) / CONFIG_NAME, allow_floats=True))


def require(condition: bool, field: str, value: Any, advice: str) -> None:
    """Raises a `ValueError` that names the field, its value and what to do."""
    if not condition:
        raise ValueError(f"`{field}` is {value!r}: {advice}")
