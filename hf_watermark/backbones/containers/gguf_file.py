"""Weights in a GGUF file (llama.cpp, stable-diffusion.cpp), read by the package `gguf` (extra `gguf`)."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...serialization import InvalidInput, UnreadableFormat, shown
from ...serialization.kinds import damaged
from ...serialization.tensors import (
    ELEMENTS,
    NAME_CHARACTERS,
    RANK,
    TENSORS,
    WEIGHT_BYTES,
    NamedTensors,
    refuse_not_finite,
)


# Each entry of an array in the metadata becomes an object. Vocabularies of language models have more, but nobody looks for a mark there.
MOST_PARTS = 100_000
PLAIN = {
    "F32": "F32",
    "F16": "F16",
    "F64": "F64",
    "BF16": "BF16",
    "I8": "I8",
    "I16": "I16",
    "I32": "I32",
    "I64": "I64",
}


class GgufFile(NamedTensors):
    """
    The weights of a GGUF file, read and dequantised one at a time.

    Args:
        path (`Path`): The file.
        max_bytes (`int`, *optional*, defaults to 16 GiB): Largest accepted file.

    Attributes:
        shapes, dtypes (`dict`): As of [`~serialization.SafetensorsFolder`]; the type of a quantised weight is the name of its kind.
        forms (`str`): What it is, for people.

    Raises:
        [`~serialization.InvalidInput`]: when it is damaged or breaks a limit.
        `ImportError`: without the package `gguf`.
    """

    def __init__(self, path: Path, max_bytes: int = WEIGHT_BYTES):
        self.path = path
        self.beside: frozenset[str] = frozenset()
        self.left_out: tuple[str, ...] = ()
        self._tensors = _tensors_of(path, max_bytes)
        self.shapes = {name: _shape(item) for name, item in self._tensors.items()}
        kinds = {name: item.tensor_type.name for name, item in self._tensors.items()}
        self.dtypes = {name: PLAIN.get(kind, f"{kind} of GGUF") for name, kind in kinds.items()}
        codes = sorted({kind for kind in kinds.values() if kind not in PLAIN})
        self.forms = f"GGUF ({', '.join(codes)})" if codes else "GGUF"

    def __getitem__(self, name: str) -> torch.Tensor:
        import gguf

        item, kind = self._tensors[name], self._tensors[name].tensor_type
        if kind.name in PLAIN and kind.name != "BF16":
            numbers = np.array(item.data)
        else:
            try:
                numbers = gguf.dequantize(np.array(item.data), kind)
            except (NotImplementedError, ValueError, AssertionError, IndexError) as error:
                raise UnreadableFormat(
                    f"{shown(name)} is stored as {kind.name} of GGUF, which cannot be undone ({str(error)[:80]})"
                ) from None
        tensor = torch.from_numpy(np.ascontiguousarray(numbers)).reshape(self.shapes[name])
        refuse_not_finite(tensor, name, self.path)
        return tensor


def _tensors_of(path: Path, max_bytes: int) -> dict[str, Any]:
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            f"{path} is a GGUF file; reading it needs a package: pip install 'hf-watermark[gguf]'"
        ) from error

    class Reader(gguf.GGUFReader):
        """The library's reader with a limit on what it keeps in memory: an array of its metadata may say that it has 2^60 entries."""

        parts_left = MOST_PARTS

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            self.parts_left -= 1
            if self.parts_left < 0 or orig_offs >= len(self.data):
                raise InvalidInput(f"its metadata has more than {MOST_PARTS} entries, or does not fit into the file")
            return super()._get_field_parts(orig_offs, raw_type)

        def _build_tensor_info(self, offs: int, count: int) -> Any:
            if count > TENSORS:
                raise InvalidInput(f"holds {count} tensors, limit {TENSORS}")
            return super()._build_tensor_info(offs, count)

    size = path.stat().st_size
    if size > max_bytes:
        raise InvalidInput(f"{path}: has {size} bytes, limit {max_bytes}.")
    try:
        found = Reader(path).tensors
    except Exception as error:  # a stranger's file makes the library raise whatever happens to it
        raise damaged(path, "GGUF", error) from None
    if not found:
        raise damaged(path, "GGUF", "it holds no tensors")
    for item in found:
        if len(item.name) > NAME_CHARACTERS or len(item.shape) > RANK or math.prod(_shape(item)) > ELEMENTS:
            raise damaged(path, "GGUF", f"a limit is broken by tensor {shown(item.name)}")
    return {item.name: item for item in found}


def _shape(item: Any) -> tuple[int, ...]:
    """GGUF names the axis of neighbours first."""
    return tuple(int(size) for size in reversed(item.shape.tolist()))
