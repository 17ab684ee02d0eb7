"""
Pictures for a net whose data nobody has: "dead leaves", discs of random place, size and grey laid over one another.

Their edges, flat areas and scales have the statistics of natural images (Ruderman 1997; Lee, Mumford, Huang 2001), which is what the inputs
of inner layers depend on most.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn


LEAVES = 300
SMALLEST = 0.02  # radius of the smallest disc, as a share of the picture's side


def dead_leaves(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """
    `[count, channels, height, width]`, float32, each channel with mean 0 and standard deviation 1 over all pictures.

    Args:
        seed (`int`, *optional*, defaults to 0):
            The same pictures for the same seed.
    """
    draw = np.random.default_rng(seed)
    pictures = np.empty((count, channels, height, width), np.float32)
    side = max(height, width)
    for picture in pictures:
        picture[:] = draw.uniform(-1, 1, (channels, 1, 1))
        # Radii with density r^-3, so that the picture looks alike at every scale.
        radii = side * np.minimum(SMALLEST / np.sqrt(draw.uniform(SMALLEST**2, 1, LEAVES)), 1)
        for radius, y, x in zip(radii, draw.uniform(0, height, LEAVES), draw.uniform(0, width, LEAVES), strict=True):
            top, left = max(0, int(y - radius)), max(0, int(x - radius))
            part = picture[:, top : int(y + radius) + 1, left : int(x + radius) + 1]
            rows = np.arange(top, top + part.shape[1])[:, None] - y
            columns = np.arange(left, left + part.shape[2])[None] - x
            part[:, rows**2 + columns**2 <= radius**2] = draw.uniform(-1, 1, (channels, 1))
    result = torch.from_numpy(pictures)
    result += 0.02 * torch.from_numpy(draw.standard_normal(result.shape, np.float32))
    spread, mean = torch.std_mean(result, dim=(0, 2, 3), keepdim=True)
    return (result - mean) / spread.clamp_min(1e-6)


def usual_side(model: nn.Module) -> int:
    """Height of the images that a timm module was made for; 64 for others."""
    known = [getattr(module, "pretrained_cfg", None) for module in model.modules()]
    sizes = [cfg["input_size"] for cfg in known if isinstance(cfg, Mapping) and cfg.get("input_size")]
    return int(sizes[0][-1]) if sizes else 64
