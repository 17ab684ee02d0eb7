"""The model that a suspect's coordinates are brought back to."""

from pathlib import Path
from typing import Any

from torch import nn

from ..backbones import run_on_backbone
from ..serialization import InvalidInput, SafetensorsFolder, read_json


def open_reference(reference: nn.Module | str | Path, backbone: dict[str, Any] | None = None) -> nn.Module:
    """
    The owner's model as a module.

    Args:
        reference (`nn.Module`, `str` or `Path`):
            The model, or the folder that it was saved in.
        backbone (`dict`, *optional*):
            The owner's architecture (`key.backbone`); by default that of the folder's `config.json`, of which no foreign code is run.

    Raises:
        [`~serialization.InvalidInput`]: when there is no model, or it does not fit.
    """
    if isinstance(reference, nn.Module):
        return reference
    if not isinstance(reference, str | Path):
        raise InvalidInput(
            f"`reference` is a {type(reference).__name__}; give the owner's model, or the folder it was saved in"
        )
    folder = Path(reference)
    if not folder.is_dir():
        raise InvalidInput(
            f"{str(reference)[:200]!r} is no folder; give the owner's model, or the folder it was saved in"
        )
    record = backbone or read_json(folder / "config.json", allow_floats=True)
    return run_on_backbone(record, SafetensorsFolder(folder))
