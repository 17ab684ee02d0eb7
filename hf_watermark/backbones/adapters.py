"""
Low-rank adapters (LoRA, DoRA) as `peft` saves them: which weights they change, and by how much.

The factors B and A of a change can be mixed by any invertible matrix, so only their product `scaling * B A` is ever looked at. Neither `peft` nor
the base model is needed to read it. What an adapter's config says beyond that is refused by name, never guessed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..serialization import InvalidInput, UnreadableFormat, shown
from ..serialization.tensors import NamedTensors
from .families import Shape
from .formats import read_float


CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
# Ways to begin that leave the base as it is. Others take a part out of it, so that the product is no change of the base.
BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")
# What says how an adapter was made, and nothing about what it computes.
_SILENT = frozenset(
    """auto_mapping base_model_name_or_path revision task_type peft_version inference_mode target_modules exclude_modules r rank_pattern
    lora_dropout bias fan_in_fan_out modules_to_save init_lora_weights layers_to_transform layers_pattern megatron_core loftq_config eva_config
    qalora_group_size runtime_config ensure_weight_tying peft_type""".split()
)
_FACTOR = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?")

Number = Annotated[float, Field(gt=-1e9, lt=1e9)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]{1,1024}$")]


class LoraSettings(BaseModel):
    """What `adapter_config.json` says about the scaling of the factors; everything else that would change their meaning is refused."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    peft_type: Literal["LORA"]
    lora_alpha: Number = 8
    use_rslora: bool = False
    use_dora: bool = False
    alpha_pattern: Annotated[dict[Name, Number], Field(max_length=4096)] | None = None
    init_lora_weights: bool | str | None = True

    @classmethod
    def of(cls, document: dict[str, Any], path: str | Path) -> "LoraSettings":
        """
        Args:
            document (`dict`):
                The content of the file, as [`~serialization.read_json`] gives it.

        Raises:
            [`~serialization.UnreadableFormat`]: for another kind of adapter, or one that says more than factors and their scaling.
        """
        try:
            found = cls.model_validate(document)
        except ValidationError as error:
            # The value itself comes from a stranger and may be of any length.
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(part)[:64] for part in first["loc"])
            raise UnreadableFormat(f"{path}: `{place}`: {first['msg']}") from None
        strange = [name for name, value in (found.model_extra or {}).items() if value and name not in _SILENT]
        if strange:
            raise UnreadableFormat(f"{path}: `{shown(strange[0])}` changes what the factors mean")
        if found.init_lora_weights not in (*BEGINNINGS, None):
            raise UnreadableFormat(
                f"{path}: `init_lora_weights` takes a part out of the base, so the factors are no change of it"
            )
        return found

    def scaling(self, module: str, rank: int) -> float:
        """What the product of the factors of one module is multiplied by."""
        alpha = self.lora_alpha
        for pattern, own in (self.alpha_pattern or {}).items():
            # As in peft, where the names are patterns and a dot stands for any letter; others are not admitted here.
            if re.fullmatch(r"(?:.*\.)?" + re.escape(pattern).replace(r"\.", "."), module, re.DOTALL):
                alpha = own
                break
        return alpha / (rank**0.5 if self.use_rslora else rank)


@dataclass(frozen=True)
class Factors:
    """Names of the stored factors of one change, and what their product is multiplied by."""

    a: str
    b: str
    scaling: float
    magnitude: str | None


class Adapter(NamedTensors):
    """
    The changes that a saved adapter makes: `scaling * B A` by the name of the weight in the base, float32, computed when asked for.

    Args:
        tensors (`Mapping[str, torch.Tensor]`):
            Those of `adapter_model.safetensors`.
        settings ([`LoraSettings`]):
            Those of `adapter_config.json`.

    Attributes:
        shapes (`dict[str, tuple[int, ...]]`): Shape of each change.
        replaced (`dict[str, str]`): Tensors that are saved whole (`modules_to_save`, biases): name in the base, and stored name.

    Raises:
        [`~serialization.UnreadableFormat`]: when the tensors are no pairs of factors.
    """

    def __init__(self, tensors: Any, settings: LoraSettings):
        self.stored = tensors
        self.replaced: dict[str, str] = {}
        parts: dict[str, dict[str, str]] = {}
        for name in tensors.shapes:
            place = name.removeprefix(PREFIX)
            factor = _FACTOR.fullmatch(place)
            if factor is not None:
                parts.setdefault(factor[1], {})[factor[2]] = name
            elif "lora_" in place:
                raise UnreadableFormat(f"{shown(name)} is no factor of a layer's weight that is known")
            elif ".modules_to_save." not in place and ".original_module." not in place:
                # With `bias="all"` peft also saves those two of a layer that is saved whole, under its own name as well; it never loads them.
                self.replaced[place.replace(".base_layer.", ".")] = name
        self.factors: dict[str, Factors] = {}
        self.shapes: dict[str, Shape] = {}
        for module, found in parts.items():
            shape = _product_shape(module, found, tensors.shapes)
            if ("lora_magnitude_vector" in found) != settings.use_dora:
                raise UnreadableFormat(f"{shown(module)}: its magnitude and `use_dora` do not go together")
            rank = tensors.shapes[found["lora_A"]][0]
            scaling = settings.scaling(module, rank)
            self.factors[f"{module}.weight"] = Factors(
                found["lora_A"], found["lora_B"], scaling, found.get("lora_magnitude_vector")
            )
            self.shapes[f"{module}.weight"] = shape

    def __getitem__(self, name: str) -> torch.Tensor:
        found = self.factors[name]
        a, b = (read_float(self.stored, stored).float().flatten(1) for stored in (found.a, found.b))
        return found.scaling * (b @ a).reshape(self.shapes[name])


def _product_shape(module: str, found: Mapping[str, str], shapes: Mapping[str, Shape]) -> Shape:
    """Shape of B A: `[out, in]`, or `[out, in, height, width]` of a convolution whose B is 1 x 1."""
    if not {"lora_A", "lora_B"} <= found.keys():
        raise UnreadableFormat(f"{shown(module)}: one of its two factors is missing")
    a, b = shapes[found["lora_A"]], shapes[found["lora_B"]]
    pair = len(a) == len(b) and len(a) in (2, 4) and a[0] == b[1] and a[0] > 0 and set(b[2:]) <= {1}
    if not pair:
        raise UnreadableFormat(f"{shown(module)}: factors of shapes {list(a)} and {list(b)} have no product")
    return (b[0], *a[1:])


class Composed(NamedTensors):
    """
    A base with an adapter on it, by the base's names: what `merge_and_unload` of peft gives.

    Args:
        base (`Mapping[str, torch.Tensor]`):
            Tensors of the base.

    Raises:
        [`~serialization.UnreadableFormat`]: when the adapter is one for another base.
    """

    def __init__(self, base: Mapping[str, torch.Tensor], adapter: Adapter):
        self.base, self.adapter = base, adapter
        self.shapes: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in base.items()}
        stored = {place: adapter.stored.shapes[name] for place, name in adapter.replaced.items()}
        for name, shape in (adapter.shapes | stored).items():
            if self.shapes.get(name) != shape:
                raise UnreadableFormat(
                    f"the adapter changes {shown(name)} {list(shape)}, which the base does not have; give the base that it was made for"
                )

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self.adapter.replaced:
            return self.adapter.stored[self.adapter.replaced[name]]
        weight = self.base[name]
        if name not in self.adapter:
            return weight
        weight = read_float(self.base, name).float() + self.adapter[name]
        magnitude = self.adapter.factors[name].magnitude
        if magnitude is None:
            return weight
        return with_magnitude(weight, read_float(self.adapter.stored, magnitude))


def with_magnitude(weight: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """The rows of a changed weight at the norms that DoRA has learnt for them."""
    if magnitude.numel() != len(weight):
        raise InvalidInput(f"a magnitude of {magnitude.numel()} numbers does not belong to {len(weight)} rows")
    rows = weight.flatten(1)
    factor = magnitude.flatten().to(rows) / torch.linalg.vector_norm(rows, dim=1)
    return (factor[:, None] * rows).reshape(weight.shape)


def apart_from(weight: torch.Tensor, base: torch.Tensor, scaled: bool) -> torch.Tensor:
    """
    The change of a merged weight against its base, `[out, ...]`, float64.

    Args:
        scaled (`bool`):
            Whether rows may have been scaled: by a normalisation that was folded in, by DoRA, or by a thief. A row `c (w0 + d)` shows `c` as its
            share along `w0` if `d` is small against it, so what stands at right angles to `w0` is taken; a negative `c` turns the change with
            the row.
    """
    rows, own = weight.double().flatten(1), base.double().flatten(1)
    if not scaled:
        return (rows - own).reshape(weight.shape)
    along = (rows * own).sum(dim=1, keepdim=True) / own.square().sum(dim=1, keepdim=True).clamp_min(1e-300)
    return ((rows - along * own) * along.sign()).reshape(weight.shape)


__all__ = ["Adapter", "Composed", "LoraSettings", "apart_from", "with_magnitude"]
