"""Modules without weights, whose parts read their own from a folder while they compute."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ..serialization import InvalidInput, SafetensorsFolder
from ..serialization.tensors import DTYPES


# A part of a net up to so many bytes is read at once, a larger one part by part.
PART_BYTES = 128 * 2**20
COUNTS = ("I64", "I32", "BOOL")


class NotStreamed(InvalidInput):
    """This folder has to be loaded in full."""


def empty_model(folder: SafetensorsFolder) -> tuple[nn.Module, dict[str, str]]:
    """
    The model that the folder's config asks for, in evaluation mode, without values, and the name in the folder of each of its tensors.

    Raises:
        [`NotStreamed`]: when its tensors are not those of the folder, one by one, in float32.
    """
    from transformers import AutoConfig

    from ..backbones.filling import quietly
    from ..backbones.loading import model_class_of
    from ..backbones.wrappers import register_wrappers

    odd = [name for name, kind in folder.dtypes.items() if kind not in ("F32", *COUNTS)]
    if odd:
        raise NotStreamed(f"{folder.path}: {odd[0]} is stored as {folder.dtypes[odd[0]]}; load the model in float32")
    if not (folder.path / "config.json").is_file():
        raise InvalidInput(f"{folder.path}: has no config.json, so the model cannot be built")
    # Stand-ins of the right shapes need no memory. Where the library puts them says which name it gives to which tensor, and that it changes none.
    stand_ins = {name: _stand_in(shape, folder.dtypes[name]) for name, shape in folder.shapes.items()}
    register_wrappers()
    try:
        with quietly():
            config = AutoConfig.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
            model, info = model_class_of(config).from_pretrained(
                None,
                config=config,
                state_dict=dict(stand_ins),
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidInput(f"{folder.path}: {error}") from None
    places = {_place(tensor): name for name, tensor in stand_ins.items()}
    names = {}
    for name, tensor in model.state_dict().items():
        if _place(tensor) not in places:
            raise NotStreamed(f"{folder.path}: {name} is not stored as it is used")
        names[name] = places[_place(tensor)]
    lost = [*info["missing_keys"], *info["mismatched_keys"], *info["unexpected_keys"]]
    if lost or sorted(names.values()) != sorted(folder.shapes):
        raise NotStreamed(
            f"{folder.path}: its tensors are not those of the model, first {str([*lost, 'a tied one'][0])!r}"
        )
    return model.eval(), names


def _stand_in(shape: tuple[int, ...], kind: str) -> torch.Tensor:
    first = torch.zeros(shape[:1], dtype=getattr(torch, DTYPES[kind][1]))
    return first.reshape(shape[:1] + (1,) * len(shape[1:])).expand(shape)


def _place(tensor: torch.Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


class Weights:
    """The tensors of a module, put into it by name and taken out again."""

    def __init__(self, model: nn.Module, stored: Mapping[str, torch.Tensor]):
        self.model, self.stored = model, stored
        # Stays where it is, because models ask it for their device.
        self.first = next(name for name, _ in model.named_parameters())

    def get(self, name: str) -> torch.Tensor:
        module, leaf = self._holder(name)
        return (module._parameters if leaf in module._parameters else module._buffers)[leaf].detach()  # type: ignore[union-attr]

    def fill(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        filled = {name: self.stored[name] for name in names}
        for name, tensor in filled.items():
            self._put(name, tensor)
        return filled

    def empty(self, names: Iterable[str]) -> None:
        for name in names:
            if name != self.first:
                self._put(name, torch.empty_like(self.get(name), device="meta"))

    def _holder(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        return self.model.get_submodule(path), leaf

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        module, leaf = self._holder(name)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[leaf] = tensor


def hollow(model: nn.Module, weights: Weights) -> None:
    """Takes all stored tensors out of a module; its parts fill themselves for their own forward passes."""
    weights.empty(weights.stored)
    weights.fill([weights.first])
    for part, names in _parts(model, "", list(weights.stored)):
        part.register_forward_pre_hook(partial(_fill, weights, names))
        part.register_forward_hook(partial(_empty, weights, names), always_call=True)


def _fill(weights: Weights, names: list[str], *_: Any) -> None:
    weights.fill(names)


def _empty(weights: Weights, names: list[str], *_: Any) -> None:
    weights.empty(names)


def _parts(module: nn.Module, prefix: str, names: list[str]) -> Iterator[tuple[nn.Module, list[str]]]:
    """Modules, each with the tensors that it reads: all that lie in it, where it is not too large."""
    own = [name for name in names if name.startswith(prefix)]
    tensors: list[Any] = [*module.parameters(), *module.buffers()]
    whole = sum(tensor.numel() * tensor.element_size() for tensor in tensors) <= PART_BYTES
    # A list of modules does not compute.
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        whole = False
    direct = own if whole else [name for name in own if "." not in name[len(prefix) :]]
    if direct:
        yield module, direct
    if not whole:
        for name, child in module.named_children():
            yield from _parts(child, f"{prefix}{name}.", own)
