"""Single entries of a live parameter: read, differentiated and written, wherever the parameter lies and however it is sharded."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from .sharding import full_parameter


@dataclass
class Entries:
    """
    Some entries of one parameter.

    Args:
        module, name (`nn.Module`, `str`):
            Where the parameter hangs, because FSDP2 and memory formats put another tensor there after the trainer was made.
        flat (`torch.Tensor`):
            `[n]`, positions in the whole parameter in row-major order, whatever its memory format.
    """

    module: nn.Module
    name: str
    flat: torch.Tensor
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: nn.Module, name: str, flat: torch.Tensor) -> "Entries":
        path, _, leaf = name.rpartition(".")
        return cls(model.get_submodule(path), leaf, flat)

    @property
    def parameter(self) -> nn.Parameter:
        return self.module.get_parameter(self.name)

    @torch.no_grad()
    def read(self) -> torch.Tensor:
        """`[n]`, the same on every process."""
        whole = full_parameter(self.parameter)
        return whole[self._places(whole)[0]]

    @torch.no_grad()
    def gradient(self) -> torch.Tensor:
        """What has been accumulated in `.grad` so far: `[n]`, float32, zero where there is none."""
        grad = self.parameter.grad
        if grad is None:
            return torch.zeros(len(self.flat), device=self.parameter.device)
        whole = full_parameter(grad)
        return whole[self._places(whole)[0]].float()

    @torch.no_grad()
    def write(self, values: torch.Tensor) -> None:
        """Puts `[n]` values in place; a process that holds a shard writes those of its shard."""
        parameter = self.parameter
        places, which = self._places(parameter)
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        own[places] = (values if which is None else values[which]).to(own)

    def _places(self, tensor: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        """Index of the entries in what this process holds of `tensor`, and which of the entries these are (`None`: all)."""
        key = (tensor.device, tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else tensor.device
        if key not in self._known:
            self._known[key] = self._find(tensor)
        return self._known[key]

    def _find(self, tensor: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        if not isinstance(tensor, DTensor):
            return torch.unravel_index(self.flat.to(tensor.device), tensor.shape), None
        # The entries' numbers, counted from 1, are sharded as the parameter is.
        numbers = torch.zeros(tensor.shape, dtype=torch.int64, device=tensor.device)
        numbers.view(-1)[self.flat.to(tensor.device)] = torch.arange(1, len(self.flat) + 1, device=tensor.device)
        local = distribute_tensor(numbers, tensor.device_mesh, tensor.placements).to_local()
        places = local.nonzero(as_tuple=True)
        return places, local[places] - 1
