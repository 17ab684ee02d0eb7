"""
Equal networks are traced once in a test process: the same small architectures come again in hundreds of tests, and `torch.export`
takes a second or more. Only the trace of channels, which reads no trained number, is shared.
"""

from typing import Any

import torch
from torch import nn

from hf_watermark.backbones.symmetry import graph


Key = tuple[Any, ...]
_export = graph._exported
_traced: dict[Key, Any] = {}
# Objects that are compared by identity are kept, so that no other gets their number.
_kept: dict[int, Any] = {}


def install() -> None:
    graph._exported = exported


def exported(model: nn.Module, images: torch.Tensor) -> Any:
    key = (*_fingerprint(model), images.shape, images.dtype, images.device)
    if key not in _traced:
        _traced[key] = _export(model, images)
    return _traced[key]


def _fingerprint(model: nn.Module) -> Key:
    """All that a trace can depend on: classes, their attributes, shapes, and the numbers of tables."""
    parts: list[Any] = []
    for name, module in model.named_modules(remove_duplicate=False):
        hooks = "_forward_hooks", "_forward_pre_hooks"
        own = {key: value for key, value in vars(module).items() if not key.startswith("_") or key in hooks}
        parts.append((name, type(module), *((key, _said(value)) for key, value in own.items())))
    for name, tensor in model.named_parameters(remove_duplicate=False):
        parts.append((name, tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad))
    for name, tensor in model.named_buffers(remove_duplicate=False):
        counted = tensor.is_meta or name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        parts.append((name, tensor.shape, tensor.dtype, tensor.device, None if counted else tensor.numpy().tobytes()))
    return tuple(parts)


def _said(value: Any) -> Any:
    said = repr(value)
    if " at 0x" not in said:
        return said
    _kept[id(value)] = value
    return id(value)
