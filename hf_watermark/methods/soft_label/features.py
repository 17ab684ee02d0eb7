"""What a key's signs refer to in an image: its coarse colours, made independent of each other. Nothing here depends on a key."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional


# Directions of less variance than this share of the largest are not scaled up to it: no network sees them.
LEAST_VARIANCE = 0.003
# Features are cut at so many standard deviations, so that no single image decides.
CUT = 2.0


@dataclass(frozen=True)
class ImageFeatures:
    """
    Mean colours of a grid of patches, centred and whitened: `features(images)` is `[n, features]`, with mean 0 and variance 1 or less.

    Args:
        mean (`torch.Tensor`):
            `[features]`.
        whitening (`torch.Tensor`):
            `[features, features]`, symmetric, so that it does not depend on how eigenvectors are chosen.
    """

    mean: torch.Tensor
    whitening: torch.Tensor

    @classmethod
    def fit(cls, images: torch.Tensor, least: int) -> "ImageFeatures":
        """`least` features or a few more, with the mean and the covariance of `images` `[n, channels, height, width]`."""
        values = patch_means(images, grid_side(least, images.shape[1])).double()
        centred = values - values.mean(dim=0)
        variances, vectors = torch.linalg.eigh(centred.T @ centred / max(len(values) - 1, 1))
        floor = (LEAST_VARIANCE * variances.max()).clamp_min(1e-12)
        whitening = vectors / variances.clamp_min(floor).sqrt() @ vectors.T
        return cls(values.mean(dim=0).float(), whitening.float())

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        channels = images.shape[1]
        side = math.isqrt(len(self.mean) // channels)
        if channels * side**2 != len(self.mean):
            raise ValueError(
                f"the images have {channels} channels, which do not give the key's {len(self.mean)} features; use images like those that "
                "the key was made from"
            )
        values = patch_means(images, side) - self.mean.to(images.device)
        return (values @ self.whitening.to(images.device)).clamp(-CUT, CUT)


def grid_side(least: int, channels: int) -> int:
    """Patches per side of the smallest grid that gives `least` features."""
    return math.isqrt(math.ceil(least / channels) - 1) + 1


def feature_count(least: int, channels: int) -> int:
    """Features of that grid."""
    return channels * grid_side(least, channels) ** 2


def patch_means(images: torch.Tensor, side: int) -> torch.Tensor:
    """`[n, channels * side * side]` (float)."""
    return functional.adaptive_avg_pool2d(images.float(), side).flatten(1)
