"""The words that public documents are made of, and one strict way to validate them."""

import json
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from . import InvalidInput, parse_json


# ASCII only: a look-alike letter or a right-to-left mark in a name would deceive the reader of a card.
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
Slug = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.+-]{1,96}$")]
Text = Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e]{0,200}$")]
RepoId = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}$")
]
RelativePath = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}){0,3}$")
]
Date = Annotated[
    str, StringConstraints(pattern=r"^20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z$")
]
Decimal = Annotated[str, StringConstraints(pattern=r"^-?[0-9]{1,18}([.][0-9]{1,18})?(e-?[0-9]{1,3})?$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Log2 = Annotated[int, Field(ge=-256, le=0)]

Model = TypeVar("Model", bound="Strict")


class Strict(BaseModel):
    """Nothing unknown, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def plain(self) -> dict[str, Any]:
        """The document as JSON, in which it is signed and written."""
        return self.model_dump(by_alias=True, mode="json")


def validated(model: type[Model], document: Any, name: str) -> Model:
    """
    Raises:
        [`~serialization.InvalidInput`]: when the document breaks the schema; the message names the field and what it should be.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        # The value itself comes from a stranger and may be of any length.
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:64] for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"{name}: {place + ': ' if place else ''}{reason}") from None
    except RecursionError:
        raise InvalidInput(f"{name}: nested too deeply") from None


def parsed(model: type[Model], raw: bytes, name: str) -> Model:
    """
    Strict JSON, then the schema; the same error for both. The file must state every field, also those with a default: what is
    signed is then what stands in the file, to its last word.
    """
    try:
        document = parse_json(raw)
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from None
    found = validated(model, document, name)
    absent = _absent(found.plain(), document)
    if absent is not None:
        raise InvalidInput(f"{name}: {absent}: Field required")
    return found


def _absent(full: Any, document: Any) -> str | None:
    """Path of the first field of `full`, a validated document, that the document left to its default."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(full, dict):
        pairs = full.items()
    elif isinstance(full, list):
        pairs = enumerate(full)
    for name, value in pairs:
        if isinstance(full, dict) and name not in document:
            return str(name)
        below = _absent(value, document[name])
        if below is not None:
            return f"{name}.{below}"
    return None


def without_floats(value: Any) -> Any:
    """
    JSON without reals, which have no one spelling in signed documents: floats become their shortest decimal text.
    """
    if isinstance(value, float):
        return json.dumps(value)
    if isinstance(value, dict):
        return {str(name): without_floats(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_floats(item) for item in value]
    return value
