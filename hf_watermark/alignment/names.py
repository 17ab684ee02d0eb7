"""
Finds the reference's tensors in a suspect under other names: prefixes, what older versions of transformers wrote to disk, and the ports
between timm and transformers. Both sides are spelled in one neutral way, close to timm's, and equal spellings belong together.
"""

import re
from collections.abc import Callable, Mapping

import torch


Tensors = dict[str, torch.Tensor]
Rewrite = tuple[str, str | Callable[[re.Match], str]]
PREFIX = r"(?:module\.|_orig_mod\.|model\.|timm_model\.|vit\.|resnet\.|swin\.|convnext\.|mobilenet_v2\.|mobilevit\.|segformer\.)*"


def _next(template: str) -> Callable[[re.Match], str]:
    """A replacement in which `{0}` is the first group and `{0+1}` its successor."""

    def replace(match: re.Match) -> str:
        numbers = {f"{i}": group for i, group in enumerate(match.groups())}
        numbers |= {
            f"{i}+1": str(int(group) + 1) for i, group in enumerate(match.groups()) if group and group.isdigit()
        }
        return re.sub(r"\{([^}]+)\}", lambda item: numbers[item[1]], template)

    return replace


# Applied in this order; every pattern belongs to one library's spelling of one family.
REWRITES: tuple[Rewrite, ...] = (
    (rf"^{PREFIX}", ""),
    # ResNet
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution\.", _next("layer{0+1}.{1}.conv{2+1}.")),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization\.", _next("layer{0+1}.{1}.bn{2+1}.")),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution\.", _next("layer{0+1}.{1}.downsample.0.")),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization\.", _next("layer{0+1}.{1}.downsample.1.")),
    # ConvNeXt
    (r"^embeddings\.patch_embeddings\.(weight|bias)$", r"stem.0.\1"),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^encoder\.stages\.(\d+)\.downsampling_layer\.(\d)\.", r"stages.\1.downsample.\2."),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.layer_scale_parameter", r"stages.\1.blocks.\2.gamma"),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.layernorm\.", r"stages.\1.blocks.\2.norm."),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.pwconv(\d)\.", r"stages.\1.blocks.\2.mlp.fc\3."),
    # Swin
    (r"^encoder\.layers\.(\d+)\.downsample\.", _next("layers.{0+1}.downsample.")),
    (r"^encoder\.layers\.(\d+)\.blocks\.", r"layers.\1.blocks."),
    (r"relative_position_bias\.relative_position_bias_table", "relative_position_bias_table"),
    # ViT, and what it shares with Swin
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.(?=attention|intermediate|output|layernorm|mlp)", r"blocks.\1."),
    (r"\.attention\.(?:attention|self)\.(query|key|value)\.", lambda match: f".attn.{match[1][0]}."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
    # Heads
    (r"^(?:classifier\.1|classifier|fc|head\.fc|head)\.(weight|bias)$", r"head.\1"),
    (r"^head\.norm\.", "norm."),
)  # fmt: skip


def rename_like(suspect: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> Tensors:
    """
    The suspect's tensors under the reference's names. Queries, keys and values are split or joined as the reference has them; a head that the
    suspect lacks, or has for other labels, is simply not there.

    Args:
        suspect (`Mapping[str, torch.Tensor]`):
            Tensors by any known spelling.
        reference (`Mapping[str, torch.Tensor]`):
            The reference's state dict.
    """
    wanted = {neutral(name): name for name in reference}
    if sum(name in suspect for name in reference) > len(reference) / 2:
        return {name: suspect[name] for name in reference if name in suspect}
    found: Tensors = {}
    for name in suspect:
        found.setdefault(neutral(name), suspect[name])
    for name in list(wanted):
        if name not in found:
            found |= _joined(name, found) | _split(name, found)
    return {reference_name: found[name] for name, reference_name in wanted.items() if name in found}


def neutral(name: str) -> str:
    for pattern, replacement in REWRITES:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def _joined(name: str, found: Tensors) -> Tensors:
    parts = [name.replace(".attn.qkv.", f".attn.{part}.") for part in "qkv"]
    if ".attn.qkv." not in name or not all(part in found for part in parts):
        return {}
    return {name: torch.cat([found[part] for part in parts])}


def _split(name: str, found: Tensors) -> Tensors:
    match = re.search(r"\.attn\.([qkv])\.", name)
    whole = name.replace(match[0], ".attn.qkv.") if match else ""
    if not match or whole not in found:
        return {}
    return {name: found[whole].chunk(3)["qkv".index(match[1])]}
