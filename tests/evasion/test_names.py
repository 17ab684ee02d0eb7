"""Files whose tensors are called otherwise, or that hold tensors which look like carriers and are none."""

import re

import pytest
import torch
from disguises import IMAGES, WAYS, Disguise, check, look
from safetensors.torch import load_file
from transformers import ViTForImageClassification


def prefixed(prefix):
    return Disguise(
        lambda state: {prefix + name: tensor for name, tensor in state.items()}, lambda get, name: get(prefix + name)
    )


def copies(real, other, change):
    """The model under one prefix, and beside it the same names with other numbers."""

    def make(state):
        return {real + n: t for n, t in state.items()} | {other + n: change(t) for n, t in state.items()}

    return Disguise(make, lambda get, name: get(real + name))


def noise(tensor):
    generator = torch.Generator().manual_seed(tensor.numel())
    return torch.rand(tensor.shape, generator=generator) - 0.5 if tensor.is_floating_point() else tensor


def beside(tensors):
    return Disguise(lambda state: state | tensors)


def timm_name(name):
    """A ResNet of transformers in the spelling of timm."""
    rules = (
        (r"resnet\.embedder\.embedder\.convolution", "conv1"),
        (r"resnet\.embedder\.embedder\.normalization", "bn1"),
        (r"resnet\.encoder\.stages\.(\d)\.layers\.(\d)", lambda m: f"layer{int(m[1]) + 1}.{m[2]}"),
        (r"\.layer\.(\d)\.convolution", lambda m: f".conv{int(m[1]) + 1}"),
        (r"\.layer\.(\d)\.normalization", lambda m: f".bn{int(m[1]) + 1}"),
        (r"shortcut\.convolution", "downsample.0"),
        (r"shortcut\.normalization", "downsample.1"),
        (r"classifier\.1", "fc"),
    )
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def numbered(names):
    return {name: f"t{number}" for number, name in enumerate(names)}


def hashed(names):
    return {name: f"{(7919 * (number + 1)) % 65521:08x}" for number, name in enumerate(names)}


def renamed(names_of, why=None):
    """Every tensor under a name that says nothing; whoever loads it has the list."""
    known = {}

    def make(state):
        known.update(names_of(list(state)))
        return {known[name]: tensor for name, tensor in state.items()}

    return Disguise(make, lambda get, name: get(known[name]), why)


BLOCK = "resnet.encoder.stages.1.layers.0"
CASES = {
    "torch.compile and DataParallel": prefixed("_orig_mod.module."),
    "ema.": prefixed("ema."),
    "deep prefix": prefixed("state_dict.model_ema.module.net."),
    "prefix with other letters": prefixed("modèle/v1:ema."),
    "timm's names": Disguise(
        lambda state: {timm_name(name): tensor for name, tensor in state.items()},
        lambda get, name: get(timm_name(name)),
    ),
    "timm's names, prefixed": Disguise(
        lambda state: {"net." + timm_name(name): tensor for name, tensor in state.items()},
        lambda get, name: get("net." + timm_name(name)),
    ),
    "an average beside it": copies("", "ema.", lambda tensor: tensor * 1.01),
    "a stranger's copy in front": copies("model.", "a.", noise),
    "a stranger's copy behind": copies("model.", "z.", noise),
    "a copy that cannot be read": copies("model.", "a.", lambda tensor: noise(tensor) * float("nan")),
    "a copy that is no number": copies("model.", "a.", lambda tensor: torch.ones(tensor.shape, dtype=torch.bool)),
    "a smaller student": copies("teacher.", "student.", lambda tensor: tensor[: max(1, len(tensor) // 2)] if tensor.ndim else tensor),
    "names with : and /": beside({"a:b": torch.ones(2), "a/b/../../c": torch.ones(2), "C:\\x": torch.ones(1)}),
    "names in no alphabet": beside({"é": torch.ones(2), "重み": torch.ones(1), "": torch.ones(1), "a\nb": torch.ones(1)}),
    "a vision transformer beside it": beside(
        {f"blocks.{n}.mlp.fc2.weight": torch.randn(8, 32) for n in range(2)} | {"patch_embed.proj.weight": torch.randn(8, 3, 4, 4)}
    ),
    "a VGG for a perceptual loss": beside({f"features.{n}.weight": torch.randn(16, 16, 3, 3) for n in (0, 2, 4)}),
    "one number of every family": beside(
        {
            "segformer.stages.0.blocks.0.mlp.fc2.weight": torch.zeros(1, 1),
            "stages.0.0.transformer.0.mlp.fc2.weight": torch.zeros(1, 1),
            "stages.0.blocks.0.mlp.fc2.weight": torch.zeros(1, 1),
            "layers.0.blocks.0.mlp.fc2.weight": torch.zeros(1, 1),
            "blocks.0.1.conv_pwl.weight": torch.zeros(1, 1, 1, 1),
            "features.3.weight": torch.zeros(1, 1, 1, 1),
            "encoder.layer.0.output.dense.weight": torch.zeros(1, 1),
            "layer1.0.conv1.weight": torch.zeros(1, 1, 1, 1),
        }
    ),
    "a further layer in a block": beside({f"{BLOCK}.layer.2.convolution.weight": torch.zeros(1, 1, 1, 1)}),
    "a further layer of the right shape": beside(
        {
            f"{BLOCK}.layer.2.convolution.weight": noise(torch.zeros(64, 64, 3, 3)),
            f"{BLOCK}.layer.2.normalization.weight": -torch.ones(64),
        }
    ),
    "a further stage": beside({"resnet.encoder.stages.9.layers.0.layer.1.convolution.weight": torch.randn(64, 64, 3, 3)}),
    "a block with a number of its own": beside(
        {"resnet.encoder.stages.00.layers.0.layer.1.convolution.weight": torch.randn(32, 32, 3, 3)}
    ),
    "numbered": renamed(numbered),
    "hashed": renamed(hashed),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_read(name, way, resnet, hub, tmp_path):
    check(CASES[name], resnet, tmp_path / "suspect", way, hub)


# --- A ViT, whose file that transformers writes has other names than the live model


def with_decoys(tensors):
    return lambda state: state | tensors


LAYER = "vit.encoder.layer.{}.output.dense.weight"
VIT_CASES = {
    "one number of a ResNet": {"layer1.0.conv1.weight": torch.zeros(1, 1, 1, 1)},
    "a ResNet": {f"layer1.{n}.conv2.weight": torch.randn(8, 8, 3, 3) for n in range(3)},
    "a further block": {LAYER.format(99): torch.randn(64, 256)},
    "a further small block": {LAYER.format(2).replace("2", "7"): torch.randn(3, 3)},
    "a scale that no layer has": {f"vit.layers.{n}.layer_scale2.lambda1": torch.randn(64).sign() for n in range(4)},
    "a scale of timm's": {f"blocks.{n}.ls2.gamma": torch.randn(64).sign() for n in range(4)},
}


@pytest.mark.parametrize("way", ["folder", "ranges"])
@pytest.mark.parametrize("name", VIT_CASES)
def test_a_vision_transformer_beside_decoys(name, way, vit, hub, tmp_path):
    vit.model.save_pretrained(tmp_path / "plain")
    written = load_file(tmp_path / "plain" / "model.safetensors")
    disguise = Disguise(with_decoys(VIT_CASES[name]))
    disguise.write(written, tmp_path / "suspect")
    loaded = ViTForImageClassification.from_pretrained(tmp_path / "suspect", config=vit.model.config).eval()
    with torch.no_grad():
        assert (loaded(IMAGES).logits - vit.model(IMAGES).logits).abs().max() <= 1e-4
    verdict, reason = look(vit, tmp_path / "suspect", way, hub)
    assert str(verdict) == "mark found", reason


VIT_RENAMED = {
    "numbered": renamed(numbered),
    "hashed": renamed(hashed),
    "a scale of the live model's": Disguise(
        with_decoys({f"vit.layers.{n}.layer_scale2.lambda1": torch.randn(64).sign() for n in range(4)})
    ),
}


@pytest.mark.parametrize("name", VIT_RENAMED)
def test_a_vision_transformer_under_other_names(name, vit, tmp_path):
    check(VIT_RENAMED[name], vit, tmp_path, "folder")


def test_what_shapes_cannot_tell_is_no_verdict(resnet, tmp_path):
    """Names gone, and other tensors of the same shapes: the right ones cannot be told, and that is said."""

    def make(state):
        many = {f"z{size}{n:03d}": noise(torch.zeros(size, size, 3, 3)) for n in range(20) for size in (32, 64)}
        return many | {f"x{name}": tensor for name, tensor in renamed(hashed).make(state).items()}

    known = hashed(list(resnet.state))
    disguise = Disguise(make, lambda get, name: get("x" + known[name]), "no tensors of the key's names")
    check(disguise, resnet, tmp_path, "folder")
