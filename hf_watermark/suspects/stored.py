"""What the files of a suspect say about how its weights are stored, and its tensors as the weights that are meant."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import is_offline_mode

from ..backbones import second_names
from ..backbones.containers import container_in, open_container
from ..backbones.stored import decoded
from ..backbones.stored.view import holds_codes, why_not_read
from ..serialization import InvalidInput, SafetensorsFolder, read_json
from ..serialization.kinds import is_adapter, names_in
from ..serialization.tensors import WEIGHT_BYTES
from .errors import HubError
from .remote import RangesIgnored, RemoteSafetensors, cached_folder
from .source import Source


def files_at(path: Path) -> Any:
    """
    The tensors of a folder or file: of safetensors, or where there are none of a GGUF or ONNX file.

    Raises:
        [`~serialization.InvalidInput`]: when there is nothing that can be read.
    """
    if not path.is_dir():
        return open_container(path) or SafetensorsFolder(path)
    names = names_in(path)
    chosen = None if any(name.endswith(".safetensors") and "/" not in name for name in names) else container_in(names)
    if chosen is None:
        return SafetensorsFolder(path, partial=True)
    container = open_container(path / chosen[0])
    if container is None:
        return SafetensorsFolder(path)  # which says what it is instead
    container.left_out = chosen[1]
    return container


def container_of(repo: str, token: str | bool | None) -> Any:
    """The same of a repository on the Hub without safetensors: the file is downloaded. `None` where there is none."""
    source = Source.open(repo, token)
    chosen = container_in(source.sizes)
    if chosen is None:
        return None
    if source.sizes[chosen[0]] > WEIGHT_BYTES:
        raise InvalidInput(f"{source.name}: {chosen[0]} has {source.sizes[chosen[0]]} bytes, limit {WEIGHT_BYTES}")
    # Constants of a graph may lie in a file beside it.
    for name in source.sizes:
        if name.startswith((f"{chosen[0]}_data", f"{chosen[0]}.data")) and source.sizes[name] <= WEIGHT_BYTES:
            source.path(name)
    container = open_container(source.path(chosen[0]))
    if container is not None:
        container.left_out = chosen[1]
    return container


# GPTQ's own tools write the second one.
CONFIGS = ("config.json", "quantize_config.json")


class Meant(NamedTuple):
    """
    Args:
        tensors (`Mapping[str, torch.Tensor]`): As weights.
        forms (`str`): The formats that they are stored in; empty where these are plain numbers.
        doubt (`str`): Why the model may compute with other weights than these.
        said (`Mapping`): What its config says about how they are stored.
    """

    tensors: Any
    forms: str
    doubt: str
    said: Mapping[str, Any]


def as_meant(tensors: Any, said: Mapping[str, Any] | None = None) -> Meant:
    """
    The tensors of a folder, file or repository as weights.

    Args:
        said (`Mapping`, *optional*): What its config says about how they are stored, where that is known already.
    """
    if said is None:
        said = _said_by(tensors) if holds_codes(tensors) else {}
    weights, codes = decoded(tensors, said)
    forms = ", ".join(filter(None, (getattr(tensors, "forms", ""), codes)))
    doubts = [getattr(tensors, key, "") for key in ("lacking", "doubt")] + [
        why_not_read(said),
        beside_in_words(tensors),
    ]
    return Meant(weights, forms, "; ".join(filter(None, doubts)), said)


def beside_in_words(tensors: Any) -> str:
    """Which files beside those that were read may be the model, and what to do; empty for none."""
    left_out = getattr(tensors, "left_out", ())
    if not left_out:
        return ""
    more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    return (
        f"{', '.join(left_out[:3])}{more} beside what was read may be the model that is used; check it by itself, as safetensors if it is stored in "
        "another way"
    )


def _said_by(tensors: Any) -> Mapping[str, Any]:
    """The `quantization_config` of the suspect's config: whoever publishes the suspect wrote it, so it explains, and is believed in nothing else."""
    if not hasattr(tensors, "document"):
        return {}
    for name in CONFIGS:
        document = tensors.document(name)
        said = document.get("quantization_config") if name == "config.json" else document
        if isinstance(said, dict) and said:
            return said
    return {}


def live_as_meant(state: Mapping[str, torch.Tensor]) -> tuple[Mapping[str, torch.Tensor], str]:
    """The same for the tensors of a live model."""
    return decoded(state)


def tensors_of_repo(
    repo: str, token: str | bool | None
) -> tuple[str, Any, Callable[[], Mapping[str, torch.Tensor]], Source | None]:
    """
    A repository's name, its tensors, what gives all of them at hand, and where the other files of an adapter are read. Ranges are read where the server
    gives them.
    """
    if is_offline_mode():
        cached = cached_folder(repo)
        return repo, cached, lambda: cached, None
    try:
        tensors = RemoteSafetensors(repo, token)
    except RangesIgnored:
        source = Source.open(repo, token)
        whole = source.weights()
        return repo, whole, lambda: whole, source
    except HubError:
        raise
    except InvalidInput:
        found = container_of(repo, token)
        if found is None:
            raise
        return repo, found, lambda: found, None
    files = Source.open(tensors.name, token) if is_adapter(tensors.beside) else None
    # A model cannot be run without all of its weights: then the files are downloaded once, into the Hub's own cache.
    return tensors.name, tensors, tensors.download, files


def config_beside(path: Path) -> Mapping[str, Any]:
    """The config of a folder of tensors, of which only names of classes are used; empty where there is none that can be read."""
    try:
        return read_json(path / "config.json", allow_floats=True) if path.is_dir() else {}
    except InvalidInput:
        return {}


def tensors_of_module(name: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """
    What a file of a live model would hold: one name per tensor where layers share weights, and nothing that is no tensor (packed weights of
    quantised layers).

    Raises:
        [`~serialization.InvalidInput`]: when its `state_dict` has names that are no strings.
    """
    held, again = module.state_dict(), second_names(module)
    if odd := [key for key in held if not isinstance(key, str)]:
        raise InvalidInput(
            f"{name}: `state_dict` of the suspect names a tensor by a {type(odd[0]).__name__}; give a module whose names are strings"
        )
    return {key: item for key, item in held.items() if isinstance(item, torch.Tensor) and key not in again}
