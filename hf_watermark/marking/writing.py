"""
`mark_model`: a mark in finished weights, in seconds, without training and without data.

1. The method writes the nearest weights that hold its bits ([`~training.embedding.Embedding.write`]).
2. The other weights of the changed rows move so that the rows' outputs change least under the covariance of their inputs.
3. What is left of a shift of the rows' means is taken out behind them: in the running mean of a BatchNorm, in the layer's bias, or in the row.

Steps 1 and 2 repeat until 1 finds nothing to do, because 2 changes the unit in which the bits are read.
"""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..backbones import Carrier, images_taken, level, read_carriers, refuse_half_precision, refuse_path
from ..backbones.folding import find_folds
from ..keys import Owner, WatermarkKey
from ..mapping import METHODS, AutoEmbedding, AutoVerifier
from ..serialization import InvalidInput
from ..suspects.source import parse_repo
from ..training.embedding import Embedding, TrainingData
from ..training.keeping import read_back, unread_keys
from ..training.planning import make_key
from .fidelity import FidelityReport, measure_fidelity
from .inputs import Inputs, layer_inputs
from .keys import configs_of
from .nets import LoadedNet, Net, NotStreamed, StoredNet, model_folder
from .pictures import dead_leaves, usual_side
from .rows import compensated, output_shift


logger = logging.getLogger(__name__)

BUDGET = 0.01
PICTURES, FEWEST_PICTURES = 64, 8
# Of a larger net fewer pictures are run, and of larger pictures: each of its layers sees more of a picture.
MANY_PARAMETERS, MANY_PIXELS = 100_000_000, 384**2
FEW_IMAGES = 16
ROUNDS = 6
# Against the mean variance of an input: synthetic pictures are trusted less than images.
RIDGE_SYNTHETIC, RIDGE_IMAGES = 0.3, 0.05
# One sub-key is opened on purpose when the model is published, and another one has to be left.
FEWEST_SUBKEYS = 2


class Marked(tuple[Any, WatermarkKey]):
    """
    `model, key` of [`mark_model`]; for a folder the path of the marked one, and its key.

    Attributes:
        fidelity ([`FidelityReport`]): What the mark costs.
    """

    fidelity: FidelityReport

    @classmethod
    def of(cls, model: nn.Module | Path, key: WatermarkKey, fidelity: FidelityReport) -> "Marked":
        marked = cls((model, key))
        marked.fidelity = fidelity
        return marked


def mark_model(
    model: nn.Module | str | Path,
    config: Any,
    owner: Owner,
    images: torch.Tensor | None = None,
    budget: float = BUDGET,
    processor: Any = None,
    seed: bytes | None = None,
    output: str | Path | None = None,
    keep: Sequence[WatermarkKey] = (),
) -> Marked:
    """
    A marked copy of a finished model and its key, without training.

    Args:
        model (`nn.Module`, `str` or `Path`):
            A classifier, a segmentation model or a backbone, in float32. It is not changed: keep it, the key commits to it as the reference
            that aligned readings take. Or a folder of such a model with `config.json` and safetensors: it is never loaded in full, so it may be
            larger than the memory, and the marked copy has the same shards. Or `user/repo[@revision]` on the Hub, which is fetched into its cache.
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
        output (`str` or `Path`, *optional*):
            For a folder or a repository: the folder of the marked copy, which must not exist.
        keep (`Sequence[WatermarkKey]`, *optional*):
            Earlier keys whose marks the model carries, of any method. They are read back from the marked copy.

    Returns:
        `tuple[nn.Module, WatermarkKey]`, with an attribute `fidelity`; for a folder `tuple[Path, WatermarkKey]`.

    Raises:
        [`~serialization.InvalidInput`]: when the method has to be trained, the mark does not fit into this model, its weights are not float32, or
            a key in `keep` is not found before or afterwards.
        [`NotStreamed`]: when a folder has to be loaded in full first.

    Example:

    ```python
    >>> marked, key = mark_model(model, "greedy_residuals", Owner.create())
    >>> print(verify(marked, key).verdict)
    mark found
    ```
    """
    if isinstance(model, nn.Module):
        if output is not None:
            raise InvalidInput("`output` is for a folder; save the marked model with `save_pretrained`")
        return mark_net(LoadedNet(model), config, owner, images, budget, processor, seed, keep)
    if output is None:
        if not os.path.isdir(model) and parse_repo(str(model)) is None:
            refuse_path(model)
        raise InvalidInput("`model` is a folder or a repository: give `output`, a new folder for the marked model")
    with StoredNet(model_folder(model), output) as net:
        marked = mark_net(net, config, owner, images, budget, processor, seed, keep)
        net.save(Path(output))
    return Marked.of(Path(output), marked[1], marked.fidelity)


def mark_net(
    net: Net,
    config: Any,
    owner: Owner,
    images: torch.Tensor | None = None,
    budget: float = BUDGET,
    processor: Any = None,
    seed: bytes | None = None,
    keep: Sequence[WatermarkKey] = (),
) -> Marked:
    """[`mark_model`] for a net that is open already; what it marks is not saved yet."""
    source = net.source
    refuse_half_precision(source)
    chosen = one_config(config)
    kind = AutoEmbedding.for_method(chosen.method)
    if isinstance(net, StoredNet) and not kind.streams:
        raise NotStreamed(f"`{kind.method}` is written into a loaded model; load it first")
    if images is not None and len(images) < FEW_IMAGES:
        raise InvalidInput(f"`images` holds {len(images)}: give at least {FEW_IMAGES}, or none")
    for missing in unread_keys(keep, net.unmarked, AutoVerifier.for_method):
        raise InvalidInput(f"`keep`: {missing} is not in this model; start from the model that carries it")
    learning, judging = _images(source) if images is None else (images[: len(images) // 2], images[len(images) // 2 :])
    folds = _folds(source, learning)
    inputs: dict[str, Inputs] = {}
    for number in _numbers(source, chosen):
        wanted = replace(chosen, subkeys=number)
        key = make_key(source, TrainingData(), [(kind, wanted)], owner, seed, processor, net.start)
        (claim,) = key.claims()
        embedding = kind(net.copy(), claim, TrainingData())
        carriers = read_carriers(claim.assignment.layout)
        names = [carrier.name for carrier in carriers]
        inputs = inputs or layer_inputs(source, names, learning, images is None)
        write(embedding, net, carriers, folds, inputs, RIDGE_SYNTHETIC if images is None else RIDGE_IMAGES)
        fidelity = measure_fidelity(source, embedding.model, judging, images is None, net.layers)
        if fidelity.kl <= budget:
            break
    else:
        logger.warning(
            "the mark moves the answers by KL %.2g, more than the budget of %.2g; lower `bits` or `margin`, give `images`, or use a larger model",
            fidelity.kl,
            budget,
        )
    inputs.clear()  # of a large net as much as reading it back takes
    for lost in unread_keys(keep, net.marked, AutoVerifier.for_method):
        raise InvalidInput(
            f"`keep`: {lost} would be lost under the new mark, so nothing was marked; lower `bits` or `subkeys`, or take another method"
        )
    read = read_back(key, net.marked, AutoVerifier.for_method)
    if not read.found:
        logger.warning(
            "the mark cannot be claimed as it stands (%s); raise `bits` or `subkeys`, or use a larger model",
            read.reason,
        )
    return Marked.of(net.marked, key, fidelity)


def one_config(config: Any) -> Any:
    """
    The config of the one method that is written.

    Raises:
        [`~serialization.InvalidInput`]: when there are several, or it has to be trained.
    """
    chosen: list[Any] = list(configs_of(config))
    if len(chosen) > 1:
        raise InvalidInput(f"`config` names {len(chosen)} methods: mark the model once for each of them")
    method = chosen[0].method
    if not AutoEmbedding.for_method(method).writable:
        known = ", ".join(name for name in METHODS if AutoEmbedding.for_method(name).writable)
        raise InvalidInput(f"`{method}` has to be trained into a model; without training there are: {known}")
    return chosen[0]


@torch.no_grad()
def write(
    embedding: Embedding,
    net: Net,
    carriers: Sequence[Carrier],
    folds: Mapping[str, str],
    inputs: Mapping[str, Inputs],
    ridge: float,
) -> None:
    """
    Marks the embedding's model, the present copy of `net`.

    Args:
        folds (`Mapping[str, str]`): The BatchNorm behind each layer that has one.
    """
    model = embedding.model
    portions = [[carrier] for carrier in carriers] if embedding.streams else [list(carriers)]
    for portion in portions:
        layers = {carrier.name: carrier.name.rpartition(".")[0] for carrier in portion}
        centred = {carrier.name for carrier in portion if carrier.centred}
        # Of rows that are standardised nobody knows how far they shift the output.
        behind = {
            name: None if name in centred else _takes_shift(model, layer, folds) for name, layer in layers.items()
        }
        needed = [*layers, *(carrier.scale for carrier in portion), *behind.values()]
        with net.lent(dict.fromkeys(name for name in needed if name is not None)):
            only = portion[0].name if embedding.streams else None
            own = {name: inputs[name] for name in layers if name in inputs}
            _write_portion(embedding, only, own, behind, centred, ridge)


def _write_portion(
    embedding: Embedding,
    only: str | None,
    inputs: Mapping[str, Inputs],
    behind: Mapping[str, str | None],
    centred: Collection[str],
    ridge: float,
) -> None:
    model = embedding.model
    before = {name: model.get_parameter(name).clone() for name in inputs}
    for _ in range(ROUNDS):
        stood = {name: model.get_parameter(name).clone() for name in behind}
        held = embedding.write(only)
        if all(torch.equal(stood[name], model.get_parameter(name)) for name in held):
            break
        for name, mask in held.items():
            if name not in inputs:
                continue
            weight = model.get_parameter(name)
            change = (weight - before[name]).float().reshape(mask.shape)
            change = compensated(change, mask.to(change.device), inputs[name], ridge, keep_mean=behind[name] is None)
            rows = before[name].float().reshape(mask.shape) + change
            # Weights that are read without the mean of their row were written into one without a mean.
            rows = level(rows, mask.to(rows.device)) if name in centred else rows
            weight.copy_(rows.reshape(weight.shape))
    for name in held:
        taker = behind[name]
        if name in inputs and taker is not None:
            shift = output_shift((model.get_parameter(name) - before[name]).float().flatten(1), inputs[name])
            _tensor(model, taker).add_(shift if taker.endswith(".running_mean") else -shift)


def _takes_shift(model: nn.Module, layer: str, folds: Mapping[str, str]) -> str | None:
    """The vector behind a layer that can take out a shift of its output's mean; `None` where there is none."""
    if layer in folds:
        return f"{folds[layer]}.running_mean"
    return f"{layer}.bias" if getattr(model.get_submodule(layer), "bias", None) is not None else None


def _tensor(model: nn.Module, name: str) -> torch.Tensor:
    return model.get_buffer(name) if name.endswith(".running_mean") else model.get_parameter(name)


def _images(source: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Synthetic pictures that the inputs are learned from, and half as many that judge."""
    parameters = sum(parameter.numel() for parameter in source.parameters())
    shape = images_taken(source, usual_side(source)).shape[1:]
    work = max(1, parameters / MANY_PARAMETERS) * max(1, shape[-2] * shape[-1] / MANY_PIXELS)
    count = max(FEWEST_PICTURES, int(PICTURES / work))
    pictures = dead_leaves(count + count // 2, *shape).to(next(source.parameters()).device)
    return pictures[:count], pictures[count:]


def _folds(source: nn.Module, images: torch.Tensor) -> dict[str, str]:
    """
    BatchNorms by the layer that they are folded into.

    Raises:
        [`~serialization.InvalidInput`]: when the model gives no answer to the images that rows are fitted on.
    """
    try:
        found = find_folds(source, images)
    except InvalidInput:
        raise
    except Exception as error:  # code of any library
        raise InvalidInput(
            f"the model answers no images of shape {list(images.shape[1:])} ({str(error)[:200]}): give `images` as it takes them; if it takes more than "
            "images, mark it while it trains"
        ) from error
    return {fold.layer: fold.norm for fold in found if fold.layer}


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
