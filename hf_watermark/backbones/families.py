"""
Which weights of an architecture family may carry a mark, told by role instead of by name.

One principle covers every residual family: **the last weight of a residual branch carries, everything else aligns**. Each such
weight is the second or later writer of its stream (the stem, a shortcut or a patch merging wrote first), so a suspect can be
aligned on its anchors alone (PROTOCOL.md §5.2, normative). VGG has one writer per stream; there every third input channel
carries and the other two thirds align.

A role is `(family, ordinal in depth order)`. A dialect says how one library spells the family's names; `prefix` absorbs
`module.`, `timm_model.`, `vit.` and the like.
"""

import math
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
        first (`tuple[int, ...]`, *optional*):
            Where the library starts to count, per numeric group; 0 everywhere by default. Dialects with equally many groups name the same
            tensor by the same numbers once these are taken off.
    """

    carrier: str
    scale: str | None = None
    first: tuple[int, ...] = ()

    def place(self, name: str) -> tuple[int, ...] | None:
        """The numbers in a name (without prefix), counted from 0; `None` for a name that this dialect does not write."""
        match = re.fullmatch(self.carrier, name)
        if match is None or any(group != str(int(group)) for group in match.groups()):
            return None  # `blocks.01` is no name of a library's
        first = self.first or (0,) * len(match.groups())
        return tuple(int(number) - start for number, start in zip(match.groups(), first, strict=True))

    def scale_of(self, name: str) -> str | None:
        return None if self.scale is None else re.sub(self.carrier, self.scale, name)


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
            Dialect(r"layer(\d+)\.(\d+)\.conv(\d+)\.weight", r"layer\1.\2.bn\3.weight", first=(1, 0, 1)),
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
    """
    Where one carrier lies in one particular state dict: names here, the role everywhere.

    Args:
        axes (`tuple[int, ...]`, *optional*):
            How the stored axes have to be permuted to `[out, in, height, width]`; `None` where they are in this order.
        view (`tuple[int, ...]`, *optional*):
            Shape that the stored numbers have before that, where they are laid flat.
        more (`tuple[str, ...]`, *optional*):
            Tensors whose rows follow, where the weight is stored in several.
        part, of (`int`, *optional*):
            Which of how many equal parts of the stored rows it is.
        middle (`bool`, *optional*):
            Whether it is the middle of a larger kernel.
        hollow (`bool`, *optional*):
            Whether the middle of its kernel belongs to another carrier, and is left out.
        lost (`bool`, *optional*):
            Whether it went into this tensor, in which it has no place of its own.
    """

    weight: str
    scale: str | None
    axes: tuple[int, ...] | None = None
    more: tuple[str, ...] = ()
    part: int = 0
    of: int = 1
    middle: bool = False
    hollow: bool = False
    lost: bool = False
    view: tuple[int, ...] | None = None

    @property
    def is_stored(self) -> bool:
        """Whether the weight is one tensor of the file as it is."""
        return (
            self.axes is None
            and self.view is None
            and not self.more
            and self.of == 1
            and not (self.middle or self.hollow or self.lost)
        )


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
    spelled = spelled_in(dialect, shapes)
    if len(spelled) > 1:
        raise InvalidInput(
            f"the state dict holds several copies of a {family.name} (prefixes {sorted(spelled)[:3]}); keep only one"
        )
    return [
        Found(prefix + name, scale_behind(family, dialect, prefix, name, shapes))
        for prefix, names in spelled.items()
        for name in last_of_each_block(family, names)
    ]


def spelled_in(dialect: Dialect, shapes: Mapping[str, Shape]) -> dict[str, dict[tuple[int, ...], str]]:
    """The weights that a dialect names, by prefix: names without it, by their place and in depth order."""
    pattern = re.compile(rf"(?P<prefix>(?:.*\.)?)(?P<name>{dialect.carrier})", re.DOTALL)
    spelled: dict[str, dict[tuple[int, ...], str]] = {}
    for match in filter(None, map(pattern.fullmatch, shapes)):
        place = dialect.place(match["name"])
        if place is not None and len(shapes[match.string]) in (2, 4):
            spelled.setdefault(match["prefix"], {})[place] = match["name"]
    return {prefix: dict(sorted(names.items())) for prefix, names in spelled.items()}


def last_of_each_block(family: Family, names: Mapping[tuple[int, ...], str]) -> list[str]:
    """In depth order, of every block the last one where the family says so."""
    if family.last_of is None:
        return list(names.values())
    return list({place[: family.last_of]: name for place, name in names.items()}.values())


def scale_behind(family: Family, dialect: Dialect, prefix: str, name: str, shapes: Mapping[str, Shape]) -> str | None:
    """Name of the vector that multiplies the rows of a carrier afterwards, if the state dict has one of this length."""
    scale = _vgg_norm(name) if family.every_third_input else dialect.scale_of(name)
    if scale is None or not is_vector(shapes.get(prefix + scale), shapes[prefix + name][0]):
        return None
    return prefix + scale


def is_vector(shape: Shape | None, size: int) -> bool:
    """Whether this is the shape of a vector of `size` numbers, such as `[64]` or `[64, 1, 1]`."""
    return shape is not None and len(shape) >= 1 and max(shape) == size == math.prod(shape)


def _vgg_norm(name: str) -> str:
    # VGG numbers convolution and normalisation in one sequence: `features.4` is followed by `features.5` when that is a BatchNorm.
    head, number, _ = name.rsplit(".", 2)
    return f"{head}.{int(number) + 1}.weight"
