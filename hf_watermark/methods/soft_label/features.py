"""
What a key's signs refer to in an image: its coarse colours, and how strongly neighbouring patches differ, made independent of each other. Nothing here
depends on a key, and a mirrored image has the same.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional


# Directions of less variance than this share of the largest are not scaled up to it: no network sees them.
LEAST_VARIANCE = 0.003
# Features are cut at so many standard deviations, so that no single image decides.
CUT = 2.0
# Patches per side between which differences are taken (no more than there are pixels), and by what it is divided.
SIDE, SCALES = 16, (1, 2, 4)
# Brightness, red against green, and yellow against blue.
OPPOSED = ((1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (0.5, 0.5, -1.0))


@dataclass(frozen=True)
class ImageFeatures:
    """
    Measures of coarse colours and differences, centred and whitened: `features(images)` is `[n, features]`, with mean 0 and variance 1 or less.

    Args:
        mean (`torch.Tensor`):
            `[features]`.
        whitening (`torch.Tensor`):
            `[features, features]`: a unit of each measure, then a symmetric matrix, so that it does not depend on how eigenvectors are chosen.
    """

    mean: torch.Tensor
    whitening: torch.Tensor

    @classmethod
    def fit(cls, images: torch.Tensor, least: int) -> "ImageFeatures":
        """`least` features or a few more, with the mean and the covariance of `images` `[n, channels, height, width]`."""
        channels = images.shape[1]
        values = measures(images, grid_side(least, channels)).double()
        mean, count = values.mean(dim=0), _differences(channels)
        # Differences count by how much of themselves they vary (those of noise vary little), colours by how much all of them do.
        colours = (values - mean)[:, count:].square().mean().sqrt()
        sizes = torch.cat([mean[:count], colours.expand(len(mean) - count)])
        unit = torch.where(sizes > 1e-6 * sizes.max(), 1 / sizes, 0.0)
        centred = (values - mean) * unit
        variances, vectors = torch.linalg.eigh(centred.T @ centred / max(len(values) - 1, 1))
        floor = (LEAST_VARIANCE * variances.max()).clamp_min(1e-12)
        whitening = unit[:, None] * (vectors / variances.clamp_min(floor).sqrt() @ vectors.T)
        return cls(mean.float(), whitening.float())

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        channels = images.shape[1]
        if feature_count(len(self.mean), channels) != len(self.mean):
            raise ValueError(
                f"the images have {channels} channels, which do not give the key's {len(self.mean)} features; use images like those that "
                "the key was made from"
            )
        values = measures(images, grid_side(len(self.mean), channels)) - self.mean.to(images.device)
        return (values @ self.whitening.to(images.device)).clamp(-CUT, CUT)


def grid_side(least: int, channels: int) -> int:
    """Patches per side of the smallest grid that gives `least` features together with the differences."""
    side = 1
    while _count(side, channels) < least:
        side += 1
    return side


def feature_count(least: int, channels: int) -> int:
    """Features of that grid and of the differences."""
    return _count(grid_side(least, channels), channels)


def _count(side: int, channels: int) -> int:
    # A patch and its mirror image count once.
    return _differences(channels) + channels * side * ((side + 1) // 2)


def _differences(channels: int) -> int:
    return 2 * len(SCALES) * channels


def measures(images: torch.Tensor, side: int) -> torch.Tensor:
    """
    `[n, features]` (float) of images `[n, channels, height, width]`: mean absolute differences of patches side by side and of patches one above the
    other, at three scales, then mean colours of a grid whose columns are averaged with those across the middle.
    """
    images = images.float()
    colours = images
    if images.shape[1] == len(OPPOSED):
        colours = torch.einsum("oc,nchw->nohw", torch.tensor(OPPOSED, device=images.device), images)
    found = []
    for scale in SCALES:
        height, width = (max(1, min(SIDE, size) // scale) for size in images.shape[2:])
        patches = functional.adaptive_avg_pool2d(colours, (height, width))
        found += [_mean_size(patches.diff(dim=3)), _mean_size(patches.diff(dim=2))]
    grid = functional.adaptive_avg_pool2d(images, side)
    half = ((grid + grid.flip(-1)) / 2)[..., : (side + 1) // 2]
    return torch.cat([*found, half.flatten(1)], dim=1)


def _mean_size(differences: torch.Tensor) -> torch.Tensor:
    """`[n, channels]`; 0 where there is one patch only."""
    return differences.abs().sum(dim=(2, 3)) / max(1, differences[0, 0].numel())


def patch_means(images: torch.Tensor, side: int) -> torch.Tensor:
    """`[n, channels * side * side]` (float)."""
    return functional.adaptive_avg_pool2d(images.float(), side).flatten(1)
