"""What the files of a suspect say about how its weights are stored, and its tensors as the weights that are meant."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..backbones.stored import decoded
from ..backbones.stored.view import holds_codes, why_not_read


# GPTQ's own tools write the second one.
CONFIGS = ("config.json", "quantize_config.json")


class Meant(NamedTuple):
    """
    Args:
        tensors (`Mapping[str, torch.Tensor]`): As weights.
        forms (`str`): The formats that they are stored in; empty where these are plain numbers.
        doubt (`str`): Why the model may compute with other weights than these.
    """

    tensors: Any
    forms: str
    doubt: str


def as_meant(tensors: Any) -> Meant:
    """The tensors of a folder, file or repository as weights."""
    said = _said_by(tensors) if holds_codes(tensors) else {}
    weights, forms = decoded(tensors, said)
    left_out = getattr(tensors, "left_out", ())
    doubts = [getattr(tensors, "lacking", ""), why_not_read(said)]
    if left_out:
        doubts.append(f"{', '.join(left_out[:3])} beside what was read may be the model that is used; give that file")
    return Meant(weights, forms, "; ".join(filter(None, doubts)))


def _said_by(tensors: Any) -> Mapping[str, Any]:
    """The `quantization_config` of the suspect's config: whoever publishes the suspect wrote it, so it explains, and is believed in nothing else."""
    read = getattr(tensors, "document", None)
    for name in CONFIGS if read is not None else ():
        document = read(name)
        said = document.get("quantization_config") if name == "config.json" else document
        if isinstance(said, dict) and said:
            return said
    return {}


def live_as_meant(state: Mapping[str, torch.Tensor]) -> tuple[Mapping[str, torch.Tensor], str]:
    """The same for the tensors of a live model."""
    return decoded(state)
