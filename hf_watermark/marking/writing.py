"""
`mark_model`: a mark in finished weights, in seconds, without training and without data.

1. The method writes the nearest weights that hold its bits ([`~training.embedding.Embedding.write`]).
2. The other weights of the changed rows move so that the rows' outputs change least under the covariance of their inputs.
3. What is left of a shift of the rows' means is taken out behind them: in the running mean of a BatchNorm, in the layer's bias, or in the row.

Steps 1 and 2 repeat until 1 finds nothing to do, because 2 changes the unit in which the bits are read.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..backbones import example_images, refuse_half_precision, refuse_path, unwrapped
from ..backbones.folding import find_folds
from ..keys import Owner, WatermarkKey
from ..mapping import METHODS, AutoEmbedding, AutoVerifier
from ..serialization import InvalidInput
from ..training.embedding import Embedding, TrainingData
from ..training.keeping import read_back, unread_keys
from .fidelity import FidelityReport, measure_fidelity
from .inputs import Inputs, layer_inputs
from .keys import configs_of, plan_key
from .pictures import dead_leaves
from .rows import compensated, output_shift


logger = logging.getLogger(__name__)

BUDGET = 0.01
PICTURES = 64
FEW_IMAGES = 16
ROUNDS = 6
# Against the mean variance of an input: synthetic pictures are trusted less than images.
RIDGE_SYNTHETIC, RIDGE_IMAGES = 0.3, 0.05
# One sub-key is opened on purpose when the model is published, and another one has to be left.
FEWEST_SUBKEYS = 2


class Marked(tuple[nn.Module, WatermarkKey]):
    """
    `model, key` of [`mark_model`].

    Attributes:
        fidelity ([`FidelityReport`]): What the mark costs.
    """

    fidelity: FidelityReport

    @classmethod
    def of(cls, model: nn.Module, key: WatermarkKey, fidelity: FidelityReport) -> "Marked":
        marked = cls((model, key))
        marked.fidelity = fidelity
        return marked


def mark_model(
    model: nn.Module,
    config: Any,
    owner: Owner,
    images: torch.Tensor | None = None,
    budget: float = BUDGET,
    processor: Any = None,
    seed: bytes | None = None,
    keep: Sequence[WatermarkKey] = (),
) -> Marked:
    """
    A marked copy of a finished model and its key, without training.

    Args:
        model (`nn.Module`):
            A classifier, a segmentation model or a backbone, in float32. It is not changed: keep it, the key commits to it as the reference
            that aligned readings take.
        config ([`WatermarkConfig`], `str` or `dict`):
            `"greedy_residuals"` or `"watermas"`, or a config of these. Without `subkeys`, there are as many as the `budget` allows, and at least
            2 where they fit: one is opened on purpose when the model is published.
        owner ([`Owner`]):
            Signs the commitment of the key.
        images (`torch.Tensor`, *optional*):
            Some unlabelled images `[n, channels, height, width]` in the model's input space; 128 halve the cost of the mark. The second half
            of them measures the cost. Without any, synthetic pictures serve.
        budget (`float`, *optional*, defaults to 0.01):
            Most Kullback-Leibler divergence, in nats, that the answers may move by in the mean.
        processor (*optional*):
            Image processor of the model: its normalisation is committed.
        seed (`bytes`, *optional*):
            32 secret bytes from which the key follows; drawn anew by default.
        keep (`Sequence[WatermarkKey]`, *optional*):
            Earlier keys whose marks the model carries, of any method. They are read back from the marked copy.

    Returns:
        `tuple[nn.Module, WatermarkKey]`, with an attribute `fidelity`.

    Raises:
        [`~serialization.InvalidInput`]: when the method has to be trained, the mark does not fit into this model, its weights are not float32, or
            a key in `keep` is not found before or afterwards.

    Example:

    ```python
    >>> marked, key = mark_model(model, "greedy_residuals", Owner.create())
    >>> print(verify(marked, key).verdict)
    mark found
    ```
    """
    refuse_path(model)
    source = unwrapped(model)
    refuse_half_precision(source)
    chosen: list[Any] = list(configs_of(config))
    if len(chosen) > 1:
        raise InvalidInput(f"`config` names {len(chosen)} methods: mark the model once for each of them")
    kind = AutoEmbedding.for_method(chosen[0].method)
    if not kind.writable:
        known = ", ".join(method for method in METHODS if AutoEmbedding.for_method(method).writable)
        raise InvalidInput(f"`{kind.method}` has to be trained into a model; without training there are: {known}")
    if images is not None and len(images) < FEW_IMAGES:
        raise InvalidInput(f"`images` holds {len(images)}: give at least {FEW_IMAGES}, or none")
    for missing in unread_keys(keep, source, AutoVerifier.for_method):
        raise InvalidInput(f"`keep`: {missing} is not in this model; start from the model that carries it")
    shape = example_images(source, usual_side(source)).shape[1:] if images is None else images.shape[1:]
    if images is None:
        pictures = dead_leaves(PICTURES + PICTURES // 2, *shape).to(next(source.parameters()).device)
        learning, judging = pictures[:PICTURES], pictures[PICTURES:]
    else:
        learning, judging = images[: len(images) // 2], images[len(images) // 2 :]
    inputs: dict[str, Inputs] = {}
    for number in _numbers(source, chosen[0]):
        wanted = replace(chosen[0], subkeys=number)
        key = plan_key(source, None, wanted, owner, seed, processor)
        marked = copy.deepcopy(source)
        (claim,) = key.claims()
        embedding = kind(marked, claim, TrainingData())
        names = [carrier["name"] for carrier in claim.assignment.layout["carriers"]]
        inputs = inputs or layer_inputs(source, names, learning, images is None)
        write(embedding, source, inputs, learning, RIDGE_SYNTHETIC if images is None else RIDGE_IMAGES)
        fidelity = measure_fidelity(source, marked, judging, images is None)
        if fidelity.kl <= budget:
            break
    else:
        logger.warning(
            "the mark moves the answers by KL %.2g, more than the budget of %.2g; lower `bits` or `margin`, give `images`, or use a larger model",
            fidelity.kl,
            budget,
        )
    for lost in unread_keys(keep, marked, AutoVerifier.for_method):
        raise InvalidInput(
            f"`keep`: {lost} would be lost under the new mark, so nothing was marked; lower `bits` or `subkeys`, or take another method"
        )
    read = read_back(key, marked, AutoVerifier.for_method)
    if not read.found:
        logger.warning(
            "the mark cannot be claimed as it stands (%s); raise `bits` or `subkeys`, or use a larger model",
            read.reason,
        )
    return Marked.of(marked, key, fidelity)


@torch.no_grad()
def write(
    embedding: Embedding, source: nn.Module, inputs: Mapping[str, Inputs], images: torch.Tensor, ridge: float
) -> None:
    """Marks the embedding's model, a copy of `source`."""
    model, before = embedding.model, dict(source.named_parameters())
    norms = {fold.layer: model.get_submodule(fold.norm) for fold in find_folds(source, images) if fold.layer}
    for _ in range(ROUNDS):
        stood = {name: parameter.clone() for name, parameter in model.named_parameters()}
        held = embedding.write()
        if all(torch.equal(stood[name], model.get_parameter(name)) for name in held):
            break
        for name, mask in held.items():
            if name not in inputs:
                continue
            weight, layer = model.get_parameter(name), model.get_submodule(name.rpartition(".")[0])
            takes_shift = name.rpartition(".")[0] in norms or getattr(layer, "bias", None) is not None
            change = (weight - before[name]).float().reshape(mask.shape)
            change = compensated(change, mask.to(change.device), inputs[name], ridge, keep_mean=not takes_shift)
            weight.copy_(before[name] + change.reshape(weight.shape))
    for name in held:
        if name in inputs:
            change = (model.get_parameter(name) - before[name]).float().flatten(1)
            _take_out(model, name.rpartition(".")[0], norms, output_shift(change, inputs[name]))


def _take_out(model: nn.Module, layer: str, norms: Mapping[str, Any], shift: torch.Tensor) -> None:
    """Moves what stands behind a layer by the shift of its output's mean."""
    bias: Any = model.get_submodule(layer).bias
    if layer in norms:
        norms[layer].running_mean += shift
    elif bias is not None:
        bias -= shift


def usual_side(model: nn.Module) -> int:
    """Height of the images that a timm module was made for; 64 for others."""
    known = [getattr(module, "pretrained_cfg", None) for module in model.modules()]
    sizes = [cfg["input_size"] for cfg in known if isinstance(cfg, Mapping) and cfg.get("input_size")]
    return int(sizes[0][-1]) if sizes else 64


def _numbers(model: nn.Module, config: Any) -> list[int]:
    """Numbers of sub-keys to try, the largest first."""
    if getattr(config, "subkeys", None) is not None:
        return [config.subkeys]
    embedding = AutoEmbedding.for_method(config.method)
    most = embedding.plan(model, TrainingData(), config, b"").subkeys
    try:
        embedding.plan(model, TrainingData(), replace(config, subkeys=max(most, FEWEST_SUBKEYS)), b"")
    except InvalidInput:
        return [most]
    return sorted({max(most >> halved, FEWEST_SUBKEYS) for halved in range(4)}, reverse=True)
