"""Gaussian noise on folded weights, and the answers of the noisy nets: the mathematics that trainer, verifier and wrapper share."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ...backbones import FoldedNet, logits_of
from ...keys import SubKey
from ...serialization import InvalidInput


logger = logging.getLogger(__name__)

# Scale of a tensor that is smaller than this when training starts, such as a bias of zeros.
LEAST_SCALE = 0.05
# Noise that leaves less of the answers than this correlation destroys what the net knows, so its scale is lowered.
BEARABLE = 0.25
TRIED_DRAWS = 8
LEAST_FACTOR = 2**-10
# Below this size every core gets a noisy copy of its own; above it, one copy, so that memory stays within three times the model.
SMALL_MODEL = 64 * 2**20


def noise_scales(weights: Mapping[str, torch.Tensor], noise: str) -> dict[str, float]:
    """
    The unit in which each tensor's noise and displacement are measured.

    Args:
        weights (`Mapping[str, torch.Tensor]`):
            Folded weights when embedding starts.
        noise (`str`):
            `"isotropic"`: 1. Else the root mean square, at least 0.05.
    """
    if noise == "isotropic":
        return dict.fromkeys(weights, 1.0)
    return {
        name: round(max(float(tensor.detach().double().square().mean().sqrt()), LEAST_SCALE), 6)
        for name, tensor in weights.items()
    }


@torch.no_grad()
def bearable_scales(
    net: FoldedNet, model: nn.Module, images: torch.Tensor, sigma: float, seeds: Sequence[int]
) -> dict[str, float]:
    """
    [`noise_scales`] times the largest of 1, 1/2, 1/4, ... at which noise of `sigma` leaves a correlation of [`BEARABLE`] between the
    model's answers and those of its noisy copies, in the mean over `seeds`. A model that answers every image alike says nothing, and keeps the whole; one
    that bears none of them gets [`LEAST_FACTOR`], and a warning.

    Args:
        images (`torch.Tensor`):
            On which it is asked, `[n, channels, height, width]`; answers are compared image by image after their mean is taken off.
    """
    weights = net.coordinates(model)
    scales = noise_scales(weights, "relative")
    images = images.to(next(iter(weights.values())))
    answers, factor = net(weights, images), 1.0
    clear = _centred(answers)
    says = bool(clear.norm() > 1e-5 * answers.norm())
    while says and factor > LEAST_FACTOR:
        spread = {name: factor * sigma * scale for name, scale in scales.items()}
        noisy = (_centred(net(add_noise(weights, spread, seed), images)) for seed in seeds)
        if float(sum(functional.cosine_similarity(clear, other, dim=0) for other in noisy)) >= BEARABLE * len(seeds):
            break
        factor /= 2
    else:
        if says:
            logger.warning(
                "the model bears no noise: with %.4g of each tensor's root mean square its answers are already others. The certificate will hold for "
                "moves of about that size only; a model with normalised layers bears more, or use a method without noise (usp, function_coupled)",
                factor * sigma,
            )
    return {name: round(factor * scale, 6) for name, scale in scales.items()}


def _centred(answers: torch.Tensor) -> torch.Tensor:
    return (answers - answers.mean(dim=0)).flatten().double()


def read_scales(layout: Mapping[str, object]) -> dict[str, float]:
    """The scales of a layout that may come from a stranger; [`~serialization.InvalidInput`] if malformed."""
    scales: Any = layout.get("scales")
    fits = isinstance(scales, dict) and 1 <= len(scales) <= 10**5
    if not fits or not all(type(value) in (int, float) and 0 < value < 1e6 for value in scales.values()):
        raise InvalidInput("layout: `scales` must map tensor names to positive numbers")
    return {str(name): float(value) for name, value in scales.items()}


def noise_seeds(subkey: SubKey, count: int, skip: int = 0) -> list[int]:
    """Seeds of `count` noise draws from stream `noise`, after the first `skip`. Everybody with the sub-key draws the same noise."""
    return (subkey.stream("noise").words(skip + count)[skip:] >> np.uint64(1)).tolist()


def add_noise(weights: Mapping[str, torch.Tensor], spread: Mapping[str, float], seed: int) -> dict[str, torch.Tensor]:
    """Noisy weights through which gradients flow. One draw over all tensors in their order."""
    device = next(iter(weights.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    sizes = [tensor.numel() for tensor in weights.values()]
    drawn = torch.randn(sum(sizes), generator=generator, device=device).split(sizes)
    return {
        name: tensor + spread[name] * noise.view(tensor.shape)
        for (name, tensor), noise in zip(weights.items(), drawn, strict=True)
    }


def weighted_distance(
    first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor], scales: Mapping[str, float]
) -> float:
    """`sqrt(sum_l ||a_l - b_l||^2 / scale_l^2)`: the norm in which the certificate holds; infinite between different shapes."""
    shapes = ({name: tensor.shape for name, tensor in weights.items()} for weights in (first, second))
    if next(shapes) != next(shapes):
        return float("inf")
    squares = (
        float((tensor - second[name].to(tensor)).detach().double().square().sum()) / scales[name] ** 2
        for name, tensor in first.items()
    )
    return sum(squares) ** 0.5


@torch.no_grad()
def clean_weights(net: FoldedNet, model: nn.Module) -> dict[str, torch.Tensor]:
    """Folded weights of `model`, kernels stored channels last, which CPUs and GPUs run faster; one tensor is converted at a time."""
    weights = net.coordinates(model)
    for name in weights:
        weights[name] = weights[name].detach()
        if weights[name].ndim == 4:
            weights[name] = weights[name].contiguous(memory_format=torch.channels_last)
    return weights


class NoisyNets:
    """
    Answers of one net under many noise draws.

    Every worker has one flat buffer whose pieces are the parameters of its own module, so a draw is one call of the generator and one
    scaled addition, and nothing is ever subtracted again. Memory beside the model: its folded weights and one buffer per worker.

    Args:
        net ([`~backbones.FoldedNet`]):
            The architecture.
        weights (`Mapping[str, torch.Tensor]`):
            What [`clean_weights`] gives; never changed.
        spread (`Mapping[str, float]`):
            Standard deviation of the noise per tensor.
        precision (`str`, *optional*, defaults to `"float32"`):
            In which the noisy nets run; noise is always added in the weights' own precision.
        workers (`int`, *optional*):
            Noisy copies that run at once; one per core for small nets on a CPU, else one.
    """

    def __init__(
        self,
        net: FoldedNet,
        weights: Mapping[str, torch.Tensor],
        spread: Mapping[str, float],
        precision: str = "float32",
        workers: int | None = None,
    ):
        self.device = next(iter(weights.values())).device
        if workers is None:
            small = sum(tensor.nbytes for tensor in weights.values()) <= SMALL_MODEL
            workers = torch.get_num_threads() if self.device.type == "cpu" and small else 1
        self.workers = [_Worker(net, weights, spread, precision) for _ in range(workers)]

    @torch.inference_mode()
    def answers(self, seeds: Iterable[int], images: torch.Tensor) -> Iterator[np.ndarray]:
        """Top-1 labels `[n]` (int64) of the net under each seed's noise, in the order of `seeds`; -1 where a logit is not finite."""
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        if len(self.workers) == 1:
            for seed in seeds:
                yield self.workers[0].answer(seed, images)
            return
        free: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self.workers:
            free.put(worker)

        def answer(seed: int) -> np.ndarray:
            worker = free.get()
            try:
                return worker.answer(seed, images)
            finally:
                free.put(worker)

        pending: Sequence = list(seeds)
        width = 2 * len(self.workers)
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(len(self.workers), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            # Only a few draws ahead, so that a caller who stops early leaves little undone.
            running = [pool.submit(answer, seed) for seed in pending[:width]]
            # One thread per worker; the limit must not become that of threads that others start later.
            torch.set_num_threads(threads)
            for place in range(len(pending)):
                result = running[place % width].result()
                if place + width < len(pending):
                    running[place % width] = pool.submit(answer, pending[place + width])
                yield result
        torch.set_num_threads(threads)


class _Worker:
    """One noisy copy."""

    def __init__(self, net: FoldedNet, clean: Mapping[str, torch.Tensor], spread: Mapping[str, float], precision: str):
        first = next(iter(clean.values()))
        self.flat = torch.empty(
            sum(tensor.numel() for tensor in clean.values()), dtype=first.dtype, device=first.device
        )
        self.dtype = getattr(torch, precision) if precision != "float32" else first.dtype
        self.low = self.flat if self.dtype == first.dtype else torch.empty_like(self.flat, dtype=self.dtype)
        self.noisy = _pieces(self.flat, clean)
        self.module = net.holding(_pieces(self.low, clean)).to(self.dtype)
        self.clean, self.spread = clean, spread
        self.generator = torch.Generator(self.flat.device)

    @torch.inference_mode()
    def answer(self, seed: int, images: torch.Tensor) -> np.ndarray:
        self.flat.normal_(generator=self.generator.manual_seed(seed))
        for name, piece in self.noisy.items():
            piece.mul_(self.spread[name]).add_(self.clean[name])
        if self.low is not self.flat:
            self.low.copy_(self.flat)
        logits = logits_of(self.module(images.to(self.dtype)))
        labels = torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), -1)
        return labels.cpu().numpy()


def _pieces(flat: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    sizes = [tensor.numel() for tensor in weights.values()]
    return {name: _shaped_like(piece, weights[name]) for name, piece in zip(weights, flat.split(sizes), strict=True)}


def _shaped_like(piece: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A view of a flat piece with the shape of `tensor`; kernels lie channels last."""
    if tensor.ndim != 4:
        return piece.view(tensor.shape)
    outputs, inputs, height, width = tensor.shape
    return piece.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
