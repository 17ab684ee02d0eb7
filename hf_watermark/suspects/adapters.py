"""Suspects that are an adapter, or a model that a base has to be taken away from to see what an adapter changed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..backbones import Adapter
from ..backbones.adapters import CONFIG, LoraSettings
from ..keys import start_digest
from ..serialization import InvalidInput, Unreadable, parse_json, read_json
from .source import Source


ADAPTED = (
    "an adapter (adapter_config.json) lies beside the weights and is loaded onto them, so the model is another one than was read: merge it into "
    "the weights (`merge_and_unload` of peft) and check the result"
)
MERGE = "merge the adapter into its base (`merge_and_unload` of peft) and give that"
UNKNOWN = (
    "an adapter of a kind that cannot be read lies in the model, so its weights are others than were read: merge it (`merge_and_unload` of peft) and check "
    "the result"
)
NO_BASE = (
    "the key marks what an adapter changes, and the suspect is a whole model: give the base that the key was made for (`base=`, --base), which is "
    "taken away from it"
)
WRONG_BASE = (
    "the base is not the model that the key was made for: its tensors have another digest than the one that the key commits to. Give the base as it "
    "was when the key was made"
)


class Base:
    """
    A base that was given for a suspect.

    Args:
        tensors (`Mapping[str, torch.Tensor]`):
            `state_dict()` of the base on the owner's architecture.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        self.tensors = tensors
        self.digest = start_digest(tensors)

    def refuse_other(self, start: str) -> None:
        """
        Whoever chose the base after the bits could choose one that lies apart from the suspect by what the bits say (PROTOCOL.md §5.5).

        Args:
            start (`str`):
                Digest that the key commits to.

        Raises:
            [`~serialization.Unreadable`]: when it is another model, or the key commits to none.
        """
        if start == "" or self.digest != start:
            raise Unreadable(WRONG_BASE)


def adapter_in(tensors: Any, source: Source | None = None) -> Adapter | InvalidInput:
    """
    The adapter in a folder or repository of which nothing else is a weight, or why it cannot be read.

    Args:
        tensors:
            Those of the folder or repository.
        source ([`Source`], *optional*):
            The repository, if it is one.
    """
    try:
        if source is None:
            where = str(Path(tensors.path) / CONFIG)
            document = read_json(where, allow_floats=True)
        else:
            where = f"{source.name}/{CONFIG}"
            document = parse_json(source.read(CONFIG) or b"", allow_floats=True)
        return Adapter(tensors, LoraSettings.of(document, where))
    except InvalidInput as error:
        return type(error)(f"{error}; {MERGE}")


__all__ = ["ADAPTED", "NO_BASE", "UNKNOWN", "Base", "adapter_in"]
