"""
Attacks that change weights and no answer: they use the symmetries of the network, derived from its graph (`hf_watermark.backbones.symmetry`).

Permutations, positive scalings and sign flips are the invariant neuron transforms of Yan et al. (KDD 2023,
https://huggingface.co/papers/2205.00199); rotations and mixings are the larger groups of transformers and linear bottlenecks.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from ..backbones.symmetry import (
    Change,
    Factors,
    Mixed,
    Moved,
    Symmetry,
    Untraceable,
    change_stored,
    fold,
    symmetry_of,
    unfold,
)
from .base import Attack, NotApplicableError, private_seed
from .batchnorm import sample_input


class SymmetricAttack(Attack):
    """What these attacks share."""

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(private_seed(self.name, vars(self)["seed"]))

    def refuse_empty(self, found: Any, model: PreTrainedModel, what: str) -> None:
        if not found:
            raise NotApplicableError(f"{type(model).__name__} has no {what}.")


def symmetry_for(model: PreTrainedModel, data: Any) -> Symmetry:
    """
    Raises:
        [`NotApplicableError`]: when the graph cannot be traced.
    """
    try:
        return symmetry_of(model, sample_input(model, data))
    except Untraceable as error:
        raise NotApplicableError(str(error)) from None


@torch.no_grad()
def store(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Writes tensors of the same names into a model, also where channels were added."""
    for name, tensor in tensors.items():
        owner, _, field = name.rpartition(".")
        module: Any = model.get_submodule(owner)
        old = getattr(module, field)
        if old.shape == tensor.shape:
            old.copy_(tensor)
            continue
        tensor = tensor.to(old)
        setattr(module, field, torch.nn.Parameter(tensor) if isinstance(old, torch.nn.Parameter) else tensor)
        if isinstance(module, torch.nn.Conv2d) and field == "weight" and module.groups == module.in_channels > 1:
            module.groups = len(tensor)
        for attribute, axis in (("out_channels", 0), ("in_channels", 1), ("out_features", 0), ("in_features", 1)):
            if hasattr(module, attribute) and tensor.ndim > axis and field == "weight":
                groups = getattr(module, "groups", 1)
                setattr(module, attribute, tensor.shape[axis] * (groups if axis else 1))
        if hasattr(module, "num_features"):
            module.num_features = len(tensor)
    return model


@dataclass
class Permute(SymmetricAttack):
    """
    Reorder the channels of every layer, and the heads of every attention, at random.

    Args:
        seed (`int`, *optional*, defaults to 0):
            Seed of the orders.
    """

    name: ClassVar[str] = "permute"

    seed: int = 0

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        symmetry, generator = symmetry_for(model, data), self.generator()
        change = Change()
        for number, space in enumerate(symmetry.spaces):
            if space.kind in ("permutation", "orthogonal", "linear"):
                change.spaces[number] = Moved.permutation(torch.randperm(space.size, generator=generator))
            elif space.kind == "heads" and space.partner is not None and number < space.partner:
                self._permute_heads(symmetry, change, number, generator)
        return store(model, change_stored(change, symmetry, model.state_dict()))

    @staticmethod
    def _permute_heads(symmetry: Symmetry, change: Change, number: int, generator: torch.Generator) -> None:
        heads = symmetry.spaces[number].heads
        partner = symmetry.spaces[number].partner
        assert heads is not None and partner is not None
        order = torch.randperm(heads[0], generator=generator)
        for place in (number, partner):
            size = symmetry.spaces[place].heads[1]  # type: ignore[index]
            whole = (order[:, None] * size + torch.arange(size)).flatten()
            change.spaces[place] = Moved.permutation(whole)
        for place, space in enumerate(symmetry.spaces):
            if space.kind == "head" and space.partner in (number, partner):
                change.spaces[place] = Moved.permutation(order)


@dataclass
class Rescale(SymmetricAttack):
    """
    Multiply every channel by a random positive number where it is written, and divide by it where it is read (through ReLU, pooling and depthwise
    convolutions; GELU and the like let no scale pass).

    Args:
        spread (`float`, *optional*, defaults to 2.0):
            The factors are 10^u with u uniform in [-spread, spread].
        seed (`int`, *optional*, defaults to 0):
            Seed of the factors.
    """

    name: ClassVar[str] = "rescale"

    spread: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._check(0 < self.spread <= 4, "spread", "give a number above 0, up to 4")

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        symmetry, generator = symmetry_for(model, data), self.generator()
        change = Change(factors=random_factors(symmetry, self.spread, generator))
        self.refuse_empty(
            change.factors, model, "channels whose scale is free: each passes an activation that lets none through"
        )
        return store(model, change_stored(change, symmetry, model.state_dict()))


def random_factors(symmetry: Symmetry, spread: float, generator: torch.Generator) -> dict[int, Factors]:
    factors = {}
    sizes = {
        segment.scale: segment.size for axes in symmetry.axes.values() for axis in axes for segment in axis.segments
    }
    for number, kind in enumerate(symmetry.scales):
        if kind != "none":
            values = 10 ** ((2 * torch.rand(sizes[number], generator=generator) - 1) * spread)
            factors[number] = Factors(values, 1 / values)
    return factors


@dataclass
class FoldBatchNorm(SymmetricAttack):
    """
    Write every BatchNorm into the layer before it (and LayerScale, and the slopes of LayerNorms into the layers behind them). The
    norms stay in place with neutral numbers.
    """

    name: ClassVar[str] = "fold_batchnorm"

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        symmetry = symmetry_for(model, data)
        self.refuse_empty(symmetry.net.folds or symmetry.norms or symmetry.scalers, model, "normalisation to fold")
        state = model.state_dict()
        return store(model, unfold(symmetry, fold(symmetry, state), state))


@dataclass
class MatrixAttack(SymmetricAttack):
    """
    An attack that changes coordinates by a dense matrix, which asks for folded norms.

    Args:
        seed (`int`, *optional*, defaults to 0):
            Seed of the matrices.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    what: ClassVar[str] = ""

    seed: int = 0

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        symmetry, generator = symmetry_for(model, data), self.generator()
        change = Change()
        for number, space in enumerate(symmetry.spaces):
            if space.kind in self.kinds:
                matrix = self.matrix(space, generator)
                change.spaces[number] = Mixed(matrix.float(), torch.linalg.inv(matrix).float())
        self.refuse_empty(change.spaces, model, self.what)
        state = model.state_dict()
        return store(model, unfold(symmetry, change.apply(symmetry, fold(symmetry, state)), state))

    def matrix(self, space: Any, generator: torch.Generator) -> torch.Tensor:
        raise NotImplementedError


@dataclass
class RotateResidual(MatrixAttack):
    """
    Rotate the residual streams of a transformer by a random orthogonal matrix that keeps the constant vector (Q 1 = 1), which
    commutes with LayerNorm once its slopes are folded into the layers behind it.
    """

    name: ClassVar[str] = "rotate_residual"
    kinds = ("orthogonal",)
    what = "residual stream that may be rotated"

    def matrix(self, space: Any, generator: torch.Generator) -> torch.Tensor:
        # A rotation of the hyperplane orthogonal to the constant vector, which is the first column of this basis.
        start = torch.randn(space.size, space.size, generator=generator, dtype=torch.float64)
        start[:, 0] = 1
        basis = torch.linalg.qr(start).Q
        inner = torch.linalg.qr(
            torch.randn(space.size - 1, space.size - 1, generator=generator, dtype=torch.float64)
        ).Q
        whole = torch.block_diag(torch.ones(1, 1, dtype=torch.float64), inner)
        return basis @ whole @ basis.mT


@dataclass
class MixHeads(MatrixAttack):
    """Multiply queries and values of every head by a random invertible matrix, keys and output projection by its inverse."""

    name: ClassVar[str] = "mix_heads"
    kinds = ("heads",)
    what = "attention whose heads may be mixed"

    def matrix(self, space: Any, generator: torch.Generator) -> torch.Tensor:
        count, size = space.heads
        return torch.block_diag(*[mild_matrix(size, generator) for _ in range(count)])


@dataclass
class MixBottlenecks(MatrixAttack):
    """Multiply every linear bottleneck stream (MobileNet: no activation between projection and expansion) by a random invertible matrix."""

    name: ClassVar[str] = "mix_bottlenecks"
    kinds = ("linear",)
    what = "stream without an activation between its layers"

    def matrix(self, space: Any, generator: torch.Generator) -> torch.Tensor:
        return mild_matrix(space.size, generator)


def mild_matrix(size: int, generator: torch.Generator) -> torch.Tensor:
    """A random invertible matrix whose singular values lie between 1/2 and 2, so that float32 stays exact enough."""
    left, right = (
        torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q for _ in range(2)
    )
    values = 2 ** (2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1)
    return left * values @ right.mT
