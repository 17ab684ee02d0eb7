"""
Which weights of an architecture family may carry a mark, told by role instead of by name.

One principle covers every residual family: **the last weight of a residual branch carries, everything else aligns**. Each such
weight is the second or later writer of its stream (the stem, a shortcut or a patch merging wrote first), so a suspect can be
aligned on its anchors alone (PROTOCOL.md §5.2, normative). VGG has one writer per stream; there every third input channel
carries and the other two thirds align.

A role is `(family, ordinal in depth order)`. A dialect says how one library spells the family's names; `prefix` absorbs
`module.`, `timm_model.`, `vit.` and the like.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..serialization import InvalidInput


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Dialect:
    """
    How one library names the carriers of a family.

    Args:
        carrier (`str`):
            Pattern of the candidate weight; its numeric groups order the candidates by depth.
        scale (`str`, *optional*):
            Template of the vector that multiplies the rows afterwards (BatchNorm weight or LayerScale).
    """

    carrier: str
    scale: str | None = None


@dataclass(frozen=True)
class Family:
    """
    Args:
        last_of (`int`, *optional*):
            Number of leading groups that name a block; only the last candidate of each block is a carrier.
        every_third_input (`bool`):
            Columns of input channels 2, 5, 8 ... carry, the others align.
    """

    name: str
    dialects: tuple[Dialect, ...]
    stem: str
    last_of: int | None = None
    every_third_input: bool = False


# Order matters: the ViT pattern is the least specific one.
FAMILIES = (
    Family(
        "resnet",
        (
            Dialect(r"layer(\d+)\.(\d+)\.conv(\d+)\.weight", r"layer\1.\2.bn\3.weight"),
            Dialect(
                r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution\.weight",
                r"encoder.stages.\1.layers.\2.layer.\3.normalization.weight",
            ),
        ),
        stem=r"(?:conv1|embedder\.embedder\.convolution)\.weight",
        last_of=2,
    ),
    Family(
        "segformer",
        (
            # Without its prefix this would be timm's spelling of a ConvNeXt.
            Dialect(r"segformer\.stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.weight"),
            Dialect(r"encoder\.block\.(\d+)\.(\d+)\.mlp\.dense2\.weight"),
        ),
        stem=r"(?:segformer\.stages\.0\.patch_embeddings|encoder\.patch_embeddings\.0)\.proj\.weight",
    ),
    Family(
        # Its transformers, whose streams the convolution before them starts; stages without one have too few weights.
        "mobilevit",
        (
            Dialect(r"stages\.(\d+)\.(\d+)\.transformer\.(\d+)\.mlp\.fc2\.weight"),
            Dialect(r"encoder\.layer\.(\d+)\.transformer\.layer\.(\d+)\.output\.dense\.weight"),
        ),
        stem=r"(?:stem\.conv|conv_stem\.convolution)\.weight",
    ),
    Family(
        "convnext",
        (
            Dialect(r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.weight", r"stages.\1.blocks.\2.gamma"),
            Dialect(
                r"encoder\.stages\.(\d+)\.layers\.(\d+)\.pwconv2\.weight",
                r"encoder.stages.\1.layers.\2.layer_scale_parameter",
            ),
        ),
        stem=r"(?:stem\.0|embeddings\.patch_embeddings)\.weight",
    ),
    Family(
        "swin",
        (
            Dialect(r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.weight"),
            Dialect(r"layers\.(\d+)\.blocks\.(\d+)\.output\.dense\.weight"),
        ),
        stem=r"(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection)\.weight",
    ),
    Family(
        "inverted_residual",
        (
            # The first block of a stage starts a stream; equal widths do not tell, because narrow nets have stages of one width.
            Dialect(r"blocks\.(\d+)\.([1-9]\d*)\.conv_pwl\.weight", r"blocks.\1.\2.bn3.weight"),
            Dialect(
                r"layer\.(1|3|4|6|7|8|10|11|13|14)\.reduce_1x1\.convolution\.weight",
                r"layer.\1.reduce_1x1.normalization.weight",
            ),
        ),
        stem=r"(?:conv_stem|conv_stem\.first_conv\.convolution)\.weight",
    ),
    Family(
        "vgg",
        (Dialect(r"features\.([1-9]\d*)\.weight"),),
        stem=r"features\.0\.weight",
        every_third_input=True,
    ),
    Family(
        "vit",
        (
            Dialect(r"blocks\.(\d+)\.mlp\.fc2\.weight", r"blocks.\1.ls2.gamma"),
            Dialect(r"encoder\.layer\.(\d+)\.output\.dense\.weight"),
            Dialect(r"encoder\.layer\.(\d+)\.mlp\.fc2\.weight", r"encoder.layer.\1.layer_scale2.lambda1"),
            Dialect(r"layers\.(\d+)\.mlp\.fc2\.weight", r"layers.\1.layer_scale2.lambda1"),
        ),
        stem=r"(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection)\.weight",
    ),
)


@dataclass(frozen=True)
class Found:
    """Where one carrier lies in one particular state dict: names here, the role everywhere."""

    weight: str
    scale: str | None


def find_carriers(shapes: Mapping[str, Shape]) -> tuple[Family, dict[str, Found]]:
    """
    The family of a state dict and its carriers in depth order.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`):
            Name and shape of every tensor; no value is needed, so a file header is enough.

    Returns:
        The family and `{role: names}`, with roles `"<family>.<ordinal>"`.

    Raises:
        [`~serialization.InvalidInput`]: when no family fits, or two copies of a model lie in one state dict.
    """
    for family in FAMILIES:
        for dialect in family.dialects:
            found = _carriers_of(family, dialect, shapes)
            if found:
                return family, {f"{family.name}.{number}": names for number, names in enumerate(found)}
    names = ", ".join(family.name for family in FAMILIES)
    raise InvalidInput(
        f"no known backbone family among {len(shapes)} tensors (known: {names}); "
        "name the tensors yourself with `layers=[...]` in the config"
    )


def find_stem(shapes: Mapping[str, Shape]) -> str:
    """Name of the first convolution (or patch projection), which the `paper` preset of greedy residuals marks."""
    for family in FAMILIES:
        pattern = re.compile(rf"(?:.*\.)?{family.stem}")
        names = [name for name in shapes if pattern.fullmatch(name) and len(shapes[name]) == 4]
        if names:
            # `layer1.0.conv1` ends like the stem `conv1`; the stem is the shallowest name.
            return min(names, key=lambda name: name.count("."))
    raise ValueError("no first convolution of a known backbone family; name the tensor yourself with `layers=[...]`")


def _carriers_of(family: Family, dialect: Dialect, shapes: Mapping[str, Shape]) -> list[Found]:
    pattern = re.compile(rf"(?P<prefix>(?:.*\.)?)(?P<name>{dialect.carrier})")
    matches = [m for m in map(pattern.fullmatch, shapes) if m and len(shapes[m.string]) in (2, 4)]
    prefixes = {m["prefix"] for m in matches}
    if len(prefixes) > 1:
        raise InvalidInput(
            f"the state dict holds several copies of a {family.name} (prefixes {sorted(prefixes)[:3]}); keep only one"
        )
    core = re.compile(dialect.carrier)
    candidates = sorted((_order(core, m["name"]), m["name"]) for m in matches)
    if family.last_of is not None:
        candidates = list({order[: family.last_of]: (order, name) for order, name in candidates}.values())
    prefix = next(iter(prefixes), "")
    found = []
    for _, name in candidates:
        scale = prefix + core.sub(dialect.scale, name) if dialect.scale else None
        found.append(Found(prefix + name, scale if scale in shapes else None))
    if family.every_third_input:
        found = [_with_vgg_norm(item, shapes) for item in found]
    return found


def _order(core: re.Pattern, name: str) -> tuple[int, ...]:
    match = core.fullmatch(name)
    assert match is not None
    return tuple(int(number) for number in match.groups())


def _with_vgg_norm(found: Found, shapes: Mapping[str, Shape]) -> Found:
    # VGG numbers convolution and normalisation in one sequence: `features.4` is followed by `features.5` when that is a BatchNorm.
    head, number, _ = found.weight.rsplit(".", 2)
    follower = f"{head}.{int(number) + 1}.weight"
    return Found(found.weight, follower if follower in shapes else None)
