"""The nets of a benchmark, sized for the data: untrained, or from the weights of a file."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

from ...backbones import backbone_config, wrap_timm
from ...serialization import InvalidInput, SafetensorsFolder
from ...serialization.words import known_names
from ..images import files_digest
from .config import BackboneSpec


# Named shapes, from seconds to minutes on one core.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny_resnet": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    # The net of the other benchmarks here: 0.31 M parameters, room for four sub-keys of greedy residuals.
    "small_resnet": {
        "model_type": "resnet",
        "embedding_size": 32,
        "hidden_sizes": [32, 64, 128],
        "depths": [1, 1, 1],
        "layer_type": "basic",
    },
    "small_vit": {
        "model_type": "vit",
        "patch_size": 4,
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 192,
    },
}
# Of timm, with the `weights` of ImageNet: `examples/benchmarks/pretrained.py --weights FILE` writes them.
PRETRAINED = {f"efficientnet_lite{size}": f"tf_efficientnet_lite{size}" for size in (0, 1, 2)}


def backbone_identity(spec: BackboneSpec) -> dict[str, Any]:
    """What determines the net, apart from data and seed; a preset counts by its content, and so does a file of weights."""
    spec = _resolved(spec)
    if spec.timm is None:
        return {"transformers": _record(spec)}
    identity = {"timm": spec.timm, "options": spec.options}
    return identity if spec.weights is None else identity | {"weights_sha256": _digest(spec.weights)}


@cache
def _digest(file: str) -> str:
    return files_digest([Path(file)])


def _resolved(spec: BackboneSpec) -> BackboneSpec:
    """A preset of timm by the name of its architecture."""
    if spec.preset not in PRETRAINED:
        if spec.weights is not None and spec.timm is None:
            raise InvalidInput("`weights` goes with `timm`, or with a preset of timm such as efficientnet_lite0")
        return spec
    if spec.weights is None:
        raise InvalidInput(
            f"preset {spec.preset!r} starts from weights: give `weights: FILE`, which examples/benchmarks/pretrained.py --weights FILE writes"
        )
    return BackboneSpec(timm=PRETRAINED[spec.preset], weights=spec.weights)


def build_backbone(spec: BackboneSpec, classes: int, shape: tuple[int, int, int], seed: int) -> PreTrainedModel:
    """
    A classifier, untrained where there are no `weights`.

    Args:
        shape (`tuple[int, int, int]`):
            Channels, height and width of the images.
        seed (`int`):
            Of the initialisation; the caller's random state is left alone.

    Raises:
        [`~serialization.InvalidInput`]: when there is no such net, or it cannot be built for these images.
    """
    spec = _resolved(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _timm(spec, classes, shape) if spec.timm is not None else _transformers(spec, classes, shape)


def _record(spec: BackboneSpec) -> dict[str, Any]:
    if spec.preset is None:
        assert spec.transformers is not None
        return spec.transformers
    if spec.preset not in PRESETS:
        raise InvalidInput(f"there is no preset {spec.preset!r}: {known_names(spec.preset, PRESETS | PRETRAINED)}")
    return PRESETS[spec.preset]


def _transformers(spec: BackboneSpec, classes: int, shape: tuple[int, int, int]) -> PreTrainedModel:
    record = {"num_channels": shape[0]} | _record(spec)
    config = backbone_config(record, "name a `model_type` of transformers")
    if "image_size" not in record and hasattr(config, "image_size"):
        config.image_size = shape[1] if shape[1] == shape[2] else list(shape[1:])
    config.num_labels = classes
    try:
        return AutoModelForImageClassification.from_config(config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidInput(f"no image classifier of type {config.model_type!r} can be built: {error}") from None


def _timm(spec: BackboneSpec, classes: int, shape: tuple[int, int, int]) -> PreTrainedModel:
    import timm

    assert spec.timm is not None
    loading = sorted({"checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"} & spec.options.keys())
    if loading:  # `checkpoint_path` would be unpickled
        raise InvalidInput(f"timm option {loading[0]!r} loads weights; give them as `weights`, a safetensors file")
    options = {"in_chans": shape[0]} | spec.options
    try:
        module = timm.create_model(spec.timm, pretrained=False, num_classes=classes, **options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidInput(f"timm cannot build {spec.timm!r}: {error}") from None
    if spec.weights is not None:
        _start_from(spec.weights, module)
    return wrap_timm(module, spec.timm, classes, **options)


def _start_from(file: str, module: Any) -> None:
    """Writes the tensors of `file` into a module of timm, but for a last layer that has other labels there."""
    own, stored = module.state_dict(), SafetensorsFolder(file)
    head = {name for name in own if name.startswith(f"{module.pretrained_cfg['classifier']}.")}
    fitting = {name: values for name, values in stored.items() if name not in own or values.shape == own[name].shape}
    wrong = sorted((fitting.keys() - own.keys()) | (own.keys() - fitting.keys() - head))
    if wrong:
        raise InvalidInput(
            f"`weights` {file}: tensor {wrong[0]!r} is not in both the file and the net, in the same shape ({len(wrong)} such tensors); give the "
            "weights of this architecture"
        )
    module.load_state_dict(own | fitting)
