"""
Safe reading of untrusted files and atomic writing.

Whatever is wrong with a file, the reader raises [`InvalidInput`]. Nothing here unpickles, unpacks an archive or uses a name from
inside a file as a path without checking it first.
"""

from .documents import JSON_BYTES, canonical_json, parse_json, read_json, write_json_atomic
from .files import InvalidInput, Unreadable, make_private_dir, read_private_bytes, write_bytes_atomic
from .folders import SafetensorsFolder
from .tensors import (
    DTYPES,
    TensorInfo,
    UnreadableFormat,
    named_tensors_digest,
    parse_safetensors_header,
    read_safetensors_header,
    shown,
    tensor_set_digest,
)


__all__ = [
    "DTYPES",
    "JSON_BYTES",
    "InvalidInput",
    "SafetensorsFolder",
    "TensorInfo",
    "Unreadable",
    "UnreadableFormat",
    "canonical_json",
    "make_private_dir",
    "named_tensors_digest",
    "parse_json",
    "parse_safetensors_header",
    "read_json",
    "read_private_bytes",
    "read_safetensors_header",
    "shown",
    "tensor_set_digest",
    "write_bytes_atomic",
    "write_json_atomic",
]
