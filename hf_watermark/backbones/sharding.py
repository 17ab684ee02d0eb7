"""Parameters of live models that FSDP2 keeps in shards over several processes."""

import sys
from typing import Any

import torch
from torch import nn


def is_shard(tensor: torch.Tensor) -> bool:
    """Whether a tensor is an FSDP2 shard (`DTensor`)."""
    # Its module takes a second to import; where nobody has imported it, there are no shards.
    known: Any = sys.modules.get("torch.distributed.tensor")
    return known is not None and isinstance(tensor, known.DTensor)


def full_parameter(parameter: torch.Tensor) -> torch.Tensor:
    """The whole tensor of a parameter, gathered when it is an FSDP2 shard (`DTensor`)."""
    if not is_shard(parameter):
        return parameter
    shard: Any = parameter
    # Processes may draw different noise and triggers, so their gradients are averaged, as those of the forward pass are.
    return shard.full_tensor(grad_placements=[torch.distributed.tensor.Partial("avg")] * shard.device_mesh.ndim)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 keeps only a part of each parameter in this process."""
    return any(is_shard(parameter) for parameter in model.parameters())
