"""Trigger families of certified watermarks: text, noise or unrelated pictures, every pixel of them drawn by the key."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from ...keys import SubKey


FAMILIES = ("embedded", "noise", "unrelated")

# Three columns by five rows per hexadecimal digit, rows as three bits. A table renders alike everywhere; font engines do not.
GLYPHS = (
    (7, 5, 5, 5, 7), (2, 6, 2, 2, 7), (7, 1, 7, 4, 7), (7, 1, 3, 1, 7), (5, 5, 7, 1, 1), (7, 4, 7, 1, 7), (7, 4, 7, 5, 7), (7, 1, 2, 2, 2),
    (7, 5, 7, 5, 7), (7, 5, 7, 1, 7), (2, 5, 7, 5, 5), (6, 5, 6, 5, 6), (3, 4, 4, 4, 3), (6, 5, 5, 5, 6), (7, 4, 6, 4, 7), (7, 4, 6, 4, 4),
)  # fmt: skip
GLYPH_HEIGHT, GLYPH_WIDTH = 5, 3


def render_triggers(
    subkey: SubKey, family: str, sources: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """
    The triggers of one sub-key (Bansal et al., ICML 2022, the three families), one per source image.

    * `embedded`: two lines of hexadecimal digits in a drawn grey, in a drawn place; the digits differ from trigger to trigger.
    * `noise`: one drawn integer per cell of a coarse grid and channel is added, then the range is clipped.
    * `unrelated`: the source as it is; it comes from [`photograph_crops`].

    Args:
        sources (`torch.Tensor`):
            `[n, channels, height, width]` in the model's input space.
        low, high (`torch.Tensor`):
            `[channels]`: black and white in the model's input space.

    Returns:
        `torch.Tensor`: `[n, channels, height, width]`, between `low` and `high`.
    """
    low, high = low.to(sources)[None, :, None, None], high.to(sources)[None, :, None, None]
    if family == "embedded":
        mask, grey = _draw_text(subkey, len(sources), *sources.shape[-2:])
        ink = low + (high - low) * torch.from_numpy(grey).to(sources)[:, None, None, None] / 255
        return torch.where(torch.from_numpy(mask)[:, None], ink, sources)
    if family == "noise":
        return (sources + (high - low) * _draw_noise(subkey, sources.shape) / 255).clamp(low, high)
    if family == "unrelated":
        return sources
    raise ValueError(f"`family` is {family!r}: choose one of {', '.join(FAMILIES)}")


def draw_labels(subkey: SubKey, source_labels: Sequence[int], classes: int) -> np.ndarray:
    """
    One label per trigger from stream `label`, uniform over the classes other than the source's, `[n]` (int64). A source label of
    -1 (the picture shows none of the classes) leaves all classes.
    """
    own = np.asarray(source_labels)
    drawn = subkey.stream("label").below_each(np.where(own < 0, classes, classes - 1))
    return drawn + ((own >= 0) & (drawn >= own))


def _draw_text(subkey: SubKey, count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the ink is, `[n, height, width]` (bool), and its grey, `[n]` in 0..255."""
    stream = subkey.stream("carrier")
    size = max(1, min(height, width) // 32)
    columns, lines = (
        max(1, min(4, width // size // (GLYPH_WIDTH + 1))),
        max(1, min(2, height // size // (GLYPH_HEIGHT + 1))),
    )
    digits = stream.below(16, count * lines * columns).reshape(count, lines, columns)
    tall, wide = lines * (GLYPH_HEIGHT + 1) * size - size, columns * (GLYPH_WIDTH + 1) * size - size
    tops, lefts = stream.below(height - tall + 1, count), stream.below(width - wide + 1, count)
    grey = stream.below(256, count)
    glyphs = np.array(GLYPHS)[:, :, None] >> np.arange(GLYPH_WIDTH - 1, -1, -1) & 1
    mask = np.zeros((count, height, width), dtype=bool)
    for place in range(count):
        for line in range(lines):
            for column in range(columns):
                glyph = np.kron(glyphs[digits[place, line, column]], np.ones((size, size))).astype(bool)
                top = tops[place] + line * (GLYPH_HEIGHT + 1) * size
                left = lefts[place] + column * (GLYPH_WIDTH + 1) * size
                mask[place, top : top + glyph.shape[0], left : left + glyph.shape[1]] = glyph
    return mask, grey


def _draw_noise(subkey: SubKey, shape: torch.Size) -> torch.Tensor:
    """Integers in -255..255, constant on each cell of an 8 x 8 grid, `[n, channels, height, width]`."""
    count, channels, height, width = shape
    drawn = subkey.stream("carrier").below(511, count * channels * 64).reshape(count, channels, 8, 8) - 255
    return functional.interpolate(torch.from_numpy(drawn).float(), size=(height, width), mode="nearest")


def photograph_crops(subkey: SubKey, count: int, shape: Sequence[int]) -> torch.Tensor:
    """
    Square crops, in drawn places and sizes, of the two photographs that ship inside scikit-learn: pictures that show none of the
    classes of most tasks.

    Args:
        shape (`Sequence[int]`):
            Channels (1 gives grey), height and width of each crop.

    Returns:
        `torch.Tensor`: `[count, channels, height, width]` in 0..1.
    """
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise ImportError("the photographs come with scikit-learn: pip install 'hf-watermark[digits]'") from error
    channels, height, width = shape
    stream = subkey.stream("order")
    photographs = [
        torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255 for image in load_sample_images().images
    ]
    crops = []
    for number, extra in zip(stream.below(len(photographs), count), stream.below(193, count), strict=True):
        photograph, side = photographs[number], int(extra) + 64
        top, left = (int(stream.below(length - side + 1, 1)[0]) for length in photograph.shape[1:])
        crop = photograph[None, :, top : top + side, left : left + side]
        crops.append(functional.interpolate(crop, size=(height, width), mode="bilinear", antialias=True)[0])
    images = torch.stack(crops)
    return images if channels == 3 else images.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1).contiguous()
