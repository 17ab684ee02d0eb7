"""How a [`Suspect`] is made of whatever is to be checked: a live model, files, a repository, or a function."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..backbones import (
    Composed,
    LiveChanges,
    adapter_layers,
    answers_of,
    as_one,
    changes,
    named_on_backbone,
    plain_copy,
    run_on_backbone,
    shapes_in,
    unwrapped,
)
from ..serialization import InvalidInput
from ..serialization.kinds import is_adapter
from .adapters import UNKNOWN, Base, adapter_in
from .asking import Answer
from .pictures import Function, PictureSuspect
from .source import Source, parse_repo, refuse_missing, refuse_missing_file
from .stored import (
    as_meant,
    beside_in_words,
    config_beside,
    files_at,
    live_as_meant,
    tensors_of_module,
    tensors_of_repo,
)
from .suspect import Suspect


if TYPE_CHECKING:
    from ..keys import ModelContext

Tensors = Mapping[str, torch.Tensor]
Backbone = Mapping[str, Any] | None


def open_suspect(
    source: Any, backbone: Backbone, token: str | bool | None, context: "ModelContext | None", base: Base | None
) -> Suspect:
    """As [`Suspect.open`]."""
    if isinstance(source, Suspect | nn.Module):
        found = source if isinstance(source, Suspect) else of_module(type(source).__name__, source)
        return found if base is None else found.beside(base)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise InvalidInput(
            f"{source[:200]} is an address; wrap it with the owner's labels and normalisation: Endpoint(url, ...)"
        )
    if isinstance(source, str) and parse_repo(source) and not Path(source).exists():
        refuse_missing_file(source)
        name, tensors, get_all, files = tensors_of_repo(source, token)
        return _of_files(name, tensors, backbone, get_all, base, files)
    if isinstance(source, str | Path):
        return _of_path(Path(source), backbone, base)
    if isinstance(source, type):
        raise InvalidInput(
            f"cannot check the class {source.__name__} as `suspect`; give an object of it: {source.__name__}(...)"
        )
    if callable(source):
        return _of_callable(source, context)
    raise InvalidInput(
        f"cannot check a {type(source).__name__}; give a model, a folder of safetensors, a Hub repo or a callable"
    )


def of_module(name: str, module: nn.Module) -> Suspect:
    """As [`Suspect.of_module`]."""
    bare = unwrapped(module)
    state = tensors_of_module(name, bare)
    with torch.no_grad():
        weights, forms = live_as_meant(as_one(bare, state))
    suspect = Suspect(
        name, weights, shapes_in(weights), _ask_module(lambda: bare), module=cache(lambda: plain_copy(bare))
    )
    suspect.stored_as = forms
    suspect._labels = lambda: {"id2label": getattr(getattr(bare, "config", None), "id2label", None)}
    if made := changes(bare):
        suspect._changes = LiveChanges(made)
    elif adapter_layers(bare):
        suspect.unread = UNKNOWN
    return suspect


def of_model(name: str, tensors: Any, backbone: Backbone, get_all: Callable[[], Tensors]) -> Suspect:
    """A model of these tensors, as they are stored; `get_all` gives all of them at once."""
    meant = as_meant(tensors)

    def all_meant() -> Tensors:
        whole = get_all()
        return meant.tensors if whole is tensors else as_meant(whole, meant.said).tensors

    suspect = _of_tensors(name, meant.tensors, meant.tensors.shapes, backbone, all_meant)
    suspect.stored_as = meant.forms
    suspect.unread = suspect.unread or meant.doubt
    return suspect


def _of_callable(source: Any, context: "ModelContext | None") -> Suspect:
    model = getattr(source, "model", None)
    if isinstance(model, nn.Module) and type(source).__module__.startswith("transformers.pipelines"):
        return of_module(f"{type(source).__name__} of a {type(model).__name__}", model)
    name = str(getattr(source, "name", "endpoint"))
    if context is None or isinstance(source, PictureSuspect):
        return Suspect(name, answer=source)
    return Suspect(name, answer=Function(source, context))


def _of_path(path: Path, backbone: Backbone, base: Base | None) -> Suspect:
    refuse_missing(path)
    tensors = files_at(path)
    suspect = _of_files(str(path), tensors, backbone, lambda: tensors, base)
    suspect._labels = lambda: config_beside(path)
    return suspect


def _of_files(
    name: str,
    tensors: Any,
    backbone: Backbone,
    get_all: Callable[[], Tensors],
    base: Base | None,
    source: Source | None = None,
) -> Suspect:
    """A model, or an adapter alone or on its base."""
    if not is_adapter(tensors.beside):
        return of_model(name, tensors, backbone, get_all).beside(base)
    made = adapter_in(tensors, source)
    if base is None or isinstance(made, InvalidInput):
        suspect = _of_tensors(name, tensors, tensors.shapes, backbone, get_all)
    else:
        whole = Composed(base.tensors, made)
        suspect = _of_tensors(name, whole, whole.shapes, backbone, lambda: whole)
    suspect._changes, suspect.unread = made, beside_in_words(tensors)
    return suspect.beside(base)


def _of_tensors(
    name: str,
    tensors: Tensors,
    shapes: Mapping[str, tuple[int, ...]],
    backbone: Backbone,
    get_all: Callable[[], Tensors],
) -> Suspect:
    if not backbone:
        return Suspect(name, tensors, shapes, tensors=get_all)
    # Built at the first query only: white-box checks never need the module.
    module = cache(lambda: run_on_backbone(backbone, get_all()))
    suspect = Suspect(name, tensors, shapes, _ask_module(module), module=module, tensors=get_all)
    suspect._named = cache(lambda: named_on_backbone(backbone, get_all()))
    return suspect


def _ask_module(get_model: Callable[[], nn.Module]) -> Answer:
    return lambda images: answers_of(get_model(), images)
