"""
Finds a model's tensors in a suspect under other names: any prefix, what older versions of transformers wrote to disk, and the ports between
timm and transformers. Both sides are spelled in one neutral way, close to timm's, and equal spellings belong together.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch


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


class Renamed(Mapping[str, torch.Tensor]):
    """
    A suspect's tensors under other names, read when they are asked for.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): The suspect.
        sources (`Mapping[str, Source]`): Names in the suspect of each tensor here.
        read (`Callable`, *optional*): Reads one of them, as stored by default.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        sources: "Mapping[str, Source]",
        read: Callable[[Mapping[str, torch.Tensor], str], torch.Tensor] | None = None,
    ):
        self.tensors, self.sources, self.read = tensors, dict(sources), read or (lambda tensors, name: tensors[name])

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.of(self.sources[name])

    def of(self, source: "Source") -> torch.Tensor:
        """What lies there in the suspect."""
        parts = [self.read(self.tensors, part) for part in source.names]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole if source.third is None else whole.chunk(3)[source.third]

    def __contains__(self, name: object) -> bool:
        return name in self.sources

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


class Source(NamedTuple):
    """Tensors that are laid end to end, and which third of that is meant (all of it by default)."""

    names: tuple[str, ...]
    third: int | None = None

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        first = tuple(shapes[self.names[0]])
        if not first:
            return first
        rows = sum(shapes[name][0] if shapes[name] else 1 for name in self.names)
        return (rows if self.third is None else rows // 3, *first[1:])


def best_spelling(names: Sequence[str], wanted: Sequence[str]) -> dict[str, Source]:
    """Of the prefixes under which the suspect has most of the wanted names, the shallowest; in the library's own spelling if possible."""
    exact = [(prefix, under_prefix(names, wanted, prefix)) for prefix in prefixes_of(names, wanted)[:1]]
    if exact and len(exact[0][1]) > len(wanted) / 2:
        return exact[0][1]
    ported = [(len(found), found) for _, found in ports(names, wanted)]
    return max([(len(found), found) for _, found in exact] + ported, key=lambda item: item[0], default=(0, {}))[1]


def prefixes_of(names: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Prefixes under which the suspect has wanted names, that with most of them first, then the shallowest."""
    tails = set(wanted)
    votes: dict[str, int] = {}
    for name in names:
        for start in _starts(name):
            if name[start:] in tails:
                votes[name[:start]] = votes.get(name[:start], 0) + 1
    return sorted(votes, key=lambda prefix: (-votes[prefix], prefix.count("."), prefix))


def under_prefix(names: Iterable[str], wanted: Iterable[str], prefix: str) -> dict[str, Source]:
    there = set(names)
    return {name: Source((prefix + name,)) for name in wanted if prefix + name in there}


def ports(names: Sequence[str], wanted: Sequence[str]) -> list[tuple[str, dict[str, Source]]]:
    """The wanted tensors in other spellings, by the prefix they stand under, that with most of them first."""
    by_neutral = {neutral(name): name for name in wanted}
    parts = {part for name in by_neutral for part in _thirds(name)} | {_whole(name)[0] for name in by_neutral}
    spelled: dict[str, dict[str, str]] = {}
    for name in names:
        for start in _starts(name):
            tail = neutral(name[start:])
            if tail in by_neutral or tail in parts:
                spelled.setdefault(name[:start], {}).setdefault(tail, name)
    found = [(prefix, _sources(by_neutral, own)) for prefix, own in spelled.items()]
    return sorted(found, key=lambda item: (-len(item[1]), item[0].count("."), item[0]))


def _sources(by_neutral: Mapping[str, str], found: Mapping[str, str]) -> dict[str, Source]:
    sources = {}
    for tail, name in by_neutral.items():
        whole, third = _whole(tail)
        if tail in found:
            sources[name] = Source((found[tail],))
        elif _thirds(tail) and all(part in found for part in _thirds(tail)):
            sources[name] = Source(tuple(found[part] for part in _thirds(tail)))
        elif whole and whole in found:
            sources[name] = Source((found[whole],), third)
    return sources


def _starts(name: str) -> list[int]:
    """Where a name without a prefix may begin. Deeper than this no library nests."""
    dots = [place + 1 for place, letter in enumerate(name) if letter == "."]
    return [0, *dots][:24]


@lru_cache(maxsize=65536)
def neutral(name: str) -> str:
    for pattern, replacement in REWRITES:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def _thirds(name: str) -> list[str]:
    """Queries, keys and values of a joint projection."""
    return [name.replace(".attn.qkv.", f".attn.{part}.") for part in "qkv"] if ".attn.qkv." in name else []


def _whole(name: str) -> tuple[str, int | None]:
    """The joint projection that a name is a third of, and which."""
    match = re.search(r"\.attn\.([qkv])\.", name)
    return (name.replace(match[0], ".attn.qkv."), "qkv".index(match[1])) if match else ("", None)
