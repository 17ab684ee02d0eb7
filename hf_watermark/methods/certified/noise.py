"""Gaussian noise on folded weights, and the answers of the noisy nets: the mathematics that trainer, verifier and wrapper share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from ...backbones import FoldedNet, logits_of
from ...keys import SubKey
from ...serialization import InvalidInput


# Scale of a tensor that is smaller than this when training starts, such as a bias of zeros.
LEAST_SCALE = 0.05
# Below this size every core gets a noisy copy of its own; above it, one copy, so that memory stays within three times the model.
SMALL_MODEL = 64 * 2**20


def noise_scales(weights: Mapping[str, torch.Tensor], noise: str) -> dict[str, float]:
    """
    The unit in which each tensor's noise and displacement are measured.

    Args:
        weights (`Mapping[str, torch.Tensor]`):
            Folded weights when embedding starts.
        noise (`str`):
            `"relative"`: root mean square, at least 0.05. `"isotropic"`: 1.
    """
    if noise == "isotropic":
        return dict.fromkeys(weights, 1.0)
    return {
        name: round(max(float(tensor.detach().double().square().mean().sqrt()), LEAST_SCALE), 6)
        for name, tensor in weights.items()
    }


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
    if any(name not in second or second[name].shape != tensor.shape for name, tensor in first.items()):
        return float("inf")
    squares = (
        float((tensor - second[name].to(tensor)).detach().double().square().sum()) / scales[name] ** 2
        for name, tensor in first.items()
    )
    return sum(squares) ** 0.5


class NoisyNets:
    """
    Answers of one net under many noise draws.

    Every worker has one flat buffer whose pieces are the parameters of its own module, so a draw is one call of the generator and one
    scaled addition, and nothing is ever subtracted again. Memory beside the model: its folded weights and one buffer per worker.

    Args:
        net ([`~backbones.FoldedNet`]):
            The architecture.
        weights (`Mapping[str, torch.Tensor]`):
            Its folded weights; never changed.
        spread (`Mapping[str, float]`):
            Standard deviation of the noise per tensor.
        workers (`int`, *optional*):
            Noisy copies that run at once; one per core for small nets on a CPU, else one.
    """

    def __init__(
        self,
        net: FoldedNet,
        weights: Mapping[str, torch.Tensor],
        spread: Mapping[str, float],
        workers: int | None = None,
    ):
        clean = {name: tensor.detach() for name, tensor in weights.items()}
        self.device = next(iter(clean.values())).device
        if workers is None:
            small = sum(tensor.nbytes for tensor in clean.values()) <= SMALL_MODEL
            workers = torch.get_num_threads() if self.device.type == "cpu" and small else 1
        self.workers = [_Worker(net, clean, spread) for _ in range(workers)]

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
        with ThreadPoolExecutor(len(self.workers), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            # Only a few draws ahead, so that a caller who stops early leaves little undone.
            running = [pool.submit(answer, seed) for seed in pending[:width]]
            for place in range(len(pending)):
                result = running[place % width].result()
                if place + width < len(pending):
                    running[place % width] = pool.submit(answer, pending[place + width])
                yield result


class _Worker:
    """One noisy copy."""

    def __init__(self, net: FoldedNet, clean: Mapping[str, torch.Tensor], spread: Mapping[str, float]):
        first = next(iter(clean.values()))
        sizes = [tensor.numel() for tensor in clean.values()]
        self.flat = torch.empty(sum(sizes), dtype=first.dtype, device=first.device)
        pieces = zip(clean, self.flat.split(sizes), strict=True)
        self.noisy = {name: piece.view(clean[name].shape) for name, piece in pieces}
        self.module = net.holding(self.noisy)
        self.clean, self.spread = clean, spread
        self.generator = torch.Generator(self.flat.device)

    @torch.inference_mode()
    def answer(self, seed: int, images: torch.Tensor) -> np.ndarray:
        self.flat.normal_(generator=self.generator.manual_seed(seed))
        for name, piece in self.noisy.items():
            piece.mul_(self.spread[name]).add_(self.clean[name])
        logits = logits_of(self.module(images))
        labels = torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), -1)
        return labels.cpu().numpy()
