"""Which file of a folder is read where there are no safetensors, and by which reader."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ...serialization import InvalidInput
from ...serialization.files import open_regular
from ...serialization.kinds import other_weights


ENDINGS = (".gguf", ".onnx")
# What exporters call the model itself; quantised variants lie beside it.
PREFERRED = ("model.onnx", "model.gguf", "onnx/model.onnx")


def container_in(names: Collection[str]) -> tuple[str, tuple[str, ...]] | None:
    """
    The GGUF or ONNX file of a folder or repository, and those beside it that may be the model as well; `None` where there is none.

    Args:
        names (`Collection[str]`): All files, those in sub-folders with a slash.
    """
    found = sorted(
        name for name in names if name.lower().endswith(ENDINGS) and ("/" not in name or name.startswith("onnx/"))
    )
    here = [name for name in found if "/" not in name] or found
    if not here:
        return None
    chosen = next((name for name in PREFERRED if name in here), here[0])
    return chosen, other_weights(names, {chosen})


def open_container(path: Path) -> Any:
    """
    The weights in a GGUF or ONNX file; `None` for any other file.

    Raises:
        [`~serialization.InvalidInput`]: when it is damaged or breaks a limit.
        `ImportError`: when the library that reads it is missing.
    """
    try:
        with open_regular(path) as (file, _):
            start = file.read(4)
    except InvalidInput:
        return None
    reader: Any = None
    if start == b"GGUF":
        from .gguf_file import GgufFile as reader
    elif path.suffix.lower() == ".onnx":
        from .onnx_file import OnnxFile as reader
    return None if reader is None else reader(path)
