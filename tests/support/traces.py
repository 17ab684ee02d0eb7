"""
Equal networks are traced once in a test process: `torch.export` takes a second or more, a graph holds no trained number, and the same small
architectures come again in hundreds of tests.
"""

from typing import Any

import torch
from torch import nn


Key = tuple[Any, ...]
_export = torch.export.export
_traced: dict[Key, Any] = {}
# Objects that are compared by identity are kept, so that no other gets their number.
_kept: dict[int, Any] = {}


def install() -> None:
    torch.export.export = export


def export(model: nn.Module, args: tuple[Any, ...], **options: Any) -> Any:
    key = (*_fingerprint(model), *((item.shape, item.dtype, item.device) for item in args), repr(options))
    if key not in _traced:
        _traced[key] = _export(model, args, **options)
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
