"""A suspect's tensors as its weights are meant: those that are stored in parts are put together when they are read."""

from collections.abc import Mapping
from typing import Any

import torch

from ...serialization import UnreadableFormat
from ...serialization.tensors import NamedTensors, dtype_name
from ..families import Shape
from .floats import bitsandbytes_4bit, bitsandbytes_8bit, compressed_tensors
from .integers import gptq_and_awq, quanto, torchao
from .packed import CODES, Headers, Parts, unreadable


FORMATS = (bitsandbytes_4bit, bitsandbytes_8bit, gptq_and_awq, compressed_tensors, torchao, quanto)
# Tensors that only one format has, by the end of their name. These formats are named, and not read.
NAMED = {
    ".W_q": "HQQ", ".codebooks": "AQLM", ".centroids.weight": "VPTQ", ".trellis": "EXL3", ".q_weight": "EXL2", "_blocks": "MXFP4 blocks", ".tlut": "QTIP",
    ".Qidxs": "QuIP#", ".B_24": "Marlin 2:4", ".dense_weights": "SpQR", ".bitmask": "a sparse format of compressed-tensors",
    ".weight_compressed": "a sparse format of compressed-tensors", "._packed_params": "packed parameters of torch", ".qweight_packed": "packed codes",
}  # fmt: skip
# A prefix for what would have the name of another weight.
BESIDE = "decoded."
READ = {
    "bitsandbytes",
    "gptq",
    "awq",
    "compressed-tensors",
    "torchao",
    "quanto",
    "fp8",
    "fbgemm_fp8",
    "modelopt",
    "mxfp4",
    "gptqmodel",
}


class Decoded(NamedTensors):
    """
    Tensors of which some are put together from several stored ones.

    Args:
        origin (`Mapping[str, torch.Tensor]`): As stored.
        headers ([`Headers`]): What they say.
        weights (`Mapping[str, Parts]`): By the name of the weight.

    Attributes:
        shapes, dtypes (`dict`): As of [`~serialization.SafetensorsFolder`]; the type of a weight that is put together is the name of its format.
    """

    def __init__(self, origin: Mapping[str, torch.Tensor], headers: Headers, weights: Mapping[str, Parts]):
        self.origin, self.parts = origin, dict(weights)
        hidden = {name for own, item in weights.items() if not own.startswith(BESIDE) for name in item.names}
        kept = [name for name in headers.shapes if name not in hidden and name not in weights]
        known = {name: item for name, item in weights.items() if item.shape}
        self.shapes: dict[str, Shape] = {name: tuple(headers.shapes[name]) for name in kept}
        self.shapes |= {name: item.shape for name, item in known.items()}
        self.dtypes = {name: headers.dtypes[name] for name in kept} | {name: item.form for name, item in known.items()}
        self.beside: frozenset[str] = getattr(origin, "beside", frozenset())

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        if name not in self.parts:
            return self.origin[name]
        weight = self.parts[name].read(self.origin.__getitem__)
        assert tuple(weight.shape) == self.shapes[name], (name, weight.shape)
        return weight

    def __getattr__(self, name: str) -> Any:
        # Where it lies, and how much of it was read.
        if name in ("path", "requests", "bytes_read", "size", "revision"):
            return getattr(self.origin, name)
        raise AttributeError(name)


def decoded(
    tensors: Mapping[str, torch.Tensor], said: Mapping[str, Any] | None = None
) -> tuple[Mapping[str, torch.Tensor], str]:
    """
    The same tensors as weights, and the names of the formats that they are stored in. A model in plain floats is returned itself.

    Args:
        said (`Mapping`, *optional*): The `quantization_config` of the suspect's config.
    """
    if not holds_codes(tensors):
        return tensors, ""
    shapes, dtypes = _headers_of(tensors)
    headers = Headers(shapes, dtypes, tensors.__getitem__, said or {})
    weights: dict[str, Parts] = {}
    for name, parts in (item for find in FORMATS for item in find(headers)):
        # Whoever uses the file may use a plain weight that lies beside the codes: then both are there to be read.
        plain = name in shapes and dtypes[name] not in CODES and shapes[name][1:] != (1,)
        weights[f"{BESIDE}{name}" if plain or name in weights else name] = parts
    for end, form in NAMED.items():
        for name in (start + end for start in headers.codes(end)):
            weights[name] = unreadable(name, form, (name,), "which is not read")
    spent = {name for parts in weights.values() for name in parts.names}
    left = sorted(
        {dtypes[name] for name in shapes if dtypes[name] in CODES and name not in spent and len(shapes[name]) > 1}
    )
    forms = [*(parts.form for parts in weights.values()), *(f"{kind.lower()} codes" for kind in left)]
    found = tensors if not weights else Decoded(tensors, headers, weights)
    return found, ", ".join(dict.fromkeys(forms))


def holds_codes(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether anything is stored in a type that no weight of a plain file has."""
    return bool(CODES & {*_headers_of(tensors)[1].values()})


def _headers_of(tensors: Mapping[str, torch.Tensor]) -> tuple[Mapping[str, Shape], Mapping[str, str]]:
    known = getattr(tensors, "dtypes", None)
    if known is not None:
        return tensors.shapes, known  # type: ignore[attr-defined]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return shapes, {name: dtype_name(tensor) for name, tensor in tensors.items()}


def why_not_read(said: Mapping[str, Any]) -> str:
    """What a config says about the storage that cannot be undone; empty for none. A config may say anything, so this explains, and refuses nothing."""
    method = said.get("quant_method")
    if isinstance(method, str) and method.lower() not in READ:
        kind = method[:40] if method.isprintable() else ascii(method[:40])
        return f"config.json says that its weights are stored by {kind!r}, which is not read"
    if said.get("transform_config"):
        return "config.json says that its weights are stored in rotated coordinates (transform_config)"
    return ""


__all__ = ["Decoded", "UnreadableFormat", "decoded", "why_not_read"]
