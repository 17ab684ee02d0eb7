"""Strict JSON: no duplicate names, bounded size and depth, no floats where a document is signed."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import rfc8785

from .files import InvalidInput, naming, open_regular, read_all, write_bytes_atomic


JSON_BYTES = 262_144
JSON_BRACKETS = 20_000
# Python's own limit is no protection: libraries raise it for the whole process (py_ecc does).
JSON_DEPTH = 100
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
BRACKET = re.compile(rb"[\[\]{}]")


def parse_json(
    raw: bytes, max_bytes: int = JSON_BYTES, max_brackets: int = JSON_BRACKETS, allow_floats: bool = False
) -> dict[str, Any]:
    """
    Parses a JSON object strictly: UTF-8, no repeated names, integers below 2^53, no NaN, no floats.

    Args:
        raw (`bytes`): The document.
        max_bytes (`int`, *optional*, defaults to 262144): Largest accepted size.
        max_brackets (`int`, *optional*, defaults to 20000): Most opening brackets, counted before parsing.
        allow_floats (`bool`, *optional*, defaults to `False`): Accept finite floats (documents that are not signed).

    Returns:
        `dict`: The object.

    Raises:
        [`InvalidInput`]: when the document breaks any of these rules.
    """
    if len(raw) > max_bytes:
        raise InvalidInput(f"JSON is longer than {max_bytes} bytes.")
    if raw.count(b"[") + raw.count(b"{") > max_brackets:
        raise InvalidInput(f"JSON has more than {max_brackets} opening brackets.")
    if _depth(raw) > JSON_DEPTH:
        raise InvalidInput(f"JSON is nested more than {JSON_DEPTH} levels deep.")
    try:
        document = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object_without_duplicates,
            parse_int=_small_integer,
            parse_float=_finite_float if allow_floats else _refuse_number,
            parse_constant=_refuse_number,
        )
        # Escapes can smuggle in half of a surrogate pair, which is no text and cannot be signed or printed.
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except InvalidInput:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"Not valid JSON ({error}).") from None
    if not isinstance(document, dict):
        raise InvalidInput(f"JSON holds a {type(document).__name__} at the top, expected an object.")
    return document


def read_json(path: str | Path, max_bytes: int = JSON_BYTES, allow_floats: bool = False) -> dict[str, Any]:
    """
    Reads a JSON object from an untrusted file with the rules of [`parse_json`].

    Args:
        path (`str` or `Path`): The file.
        max_bytes (`int`, *optional*, defaults to 262144): Largest accepted size.
        allow_floats (`bool`, *optional*, defaults to `False`): Accept finite floats.

    Returns:
        `dict`: The object.

    Raises:
        [`InvalidInput`]: when the file is missing, unreadable, too large or not such a document.
    """
    with naming(path), open_regular(path) as (file, _):
        return parse_json(read_all(file, max_bytes), max_bytes, allow_floats=allow_floats)


def canonical_json(document: Any) -> bytes:
    """
    The one byte string of a JSON document that is hashed or signed (RFC 8785).

    Raises:
        [`InvalidInput`]: when the document has none: integers from 2^53 on, NaN, half a surrogate pair.
    """
    try:
        return rfc8785.dumps(document)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidInput(f"document has no canonical form ({type(error).__name__}: {error})") from None


def write_json_atomic(
    path: str | Path, document: Mapping[str, Any], mode: int = 0o644, overwrite: bool = True
) -> None:
    """Writes indented, sorted JSON for people to read, with [`write_bytes_atomic`]; NaN and infinity are refused."""
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes_atomic(path, text.encode("utf-8") + b"\n", mode, overwrite)


def _depth(raw: bytes) -> int:
    """Most brackets that are open at once, outside of strings."""
    deepest = depth = 0
    for match in BRACKET.finditer(STRING.sub(b"", raw)):
        depth += 1 if match[0] in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise InvalidInput(f"name {name[:64]!r} appears twice in one object.")
        result[name] = value
    return result


def _small_integer(text: str) -> int:
    # Length first: converting a million digits takes seconds.
    if len(text) > 17 or abs(int(text)) >= 2**53:
        raise InvalidInput(f"integer {text[:20]} is not below 2^53.")
    return int(text)


def _finite_float(text: str) -> float:
    if not math.isfinite(float(text)):
        raise InvalidInput(f"number {text[:20]} is not finite.")
    return float(text)


def _refuse_number(text: str) -> NoReturn:
    raise InvalidInput(f"number {text[:20]} is not an integer; this document allows integers only.")
