"""Image data for measurements: parquet files of small pictures held in memory, and synthetic patterns. Nothing is downloaded."""

import hashlib
import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from ..serialization import InvalidInput


LABEL_COLUMNS = ("label", "labels", "fine_label")
# Of one split, as uint8; a matrix is for data that fit into memory.
MOST_BYTES = 8 * 2**30
CHUNK = 2**20


class ImagesInMemory(Dataset):
    """
    Map-style data set of `{"pixel_values": float32 [channels, height, width], "labels": int}`.

    Args:
        images (`torch.Tensor`):
            `[n, channels, height, width]`, uint8.
        labels (`torch.Tensor`):
            `[n]`.
        mean, std (`tuple[float, ...]`):
            Per channel, of values from 0 to 1.
        augment (`bool`):
            Random crop with 4 pixels of padding and horizontal flip, drawn from torch's global generator.
        side (`int`, *optional*):
            Height and width of the items; by default those of `images`.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: bool = False,
        side: int | None = None,
    ):
        self.images, self.labels, self.augment, self.side = images, labels, augment, side
        self.mean = torch.tensor(mean)[:, None, None] * 255
        self.std = torch.tensor(std)[:, None, None] * 255
        self._scale = mean, std

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, Any]:
        image = (self.images[row] - self.mean) / self.std
        if self.augment:
            flip, top, left = (int(torch.randint(most, ()).item()) for most in (2, 9, 9))
            height, width = image.shape[-2:]
            padded = nn.functional.pad(image, (4, 4, 4, 4))
            image = padded[:, top : top + height, left : left + width]
            image = image.flip(-1) if flip else image
        if self.side:
            image = nn.functional.interpolate(image[None], size=self.side, mode="bilinear", antialias=True)[0]
        return {"pixel_values": image, "labels": int(self.labels[row])}

    def first(self, count: int) -> "ImagesInMemory":
        """The first `count` images, augmented as these are."""
        return ImagesInMemory(self.images[:count], self.labels[:count], *self._scale, self.augment, self.side)


def parquet_files(folder: str | Path, split: Literal["train", "test"]) -> list[Path]:
    """
    The files of one split, sorted.

    Raises:
        [`~serialization.InvalidInput`]: when there are none.
    """
    files = sorted(Path(folder).glob(f"{split}-*.parquet"))
    if not files:
        raise InvalidInput(f"{folder}: holds no {split}-*.parquet; give the folder of such files")
    return files


def files_digest(files: list[Path]) -> str:
    """SHA-256 over the content of the files, in this order."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def read_parquet_images(
    folder: str | Path, split: Literal["train", "test"], most: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Decodes the first `most` pictures of one split: a column `image` (encoded bytes) and one of labels, as `datasets` writes them.

    Returns:
        Images `[n, channels, height, width]` (uint8; one channel where all pictures are grey) and labels `[n]`.

    Raises:
        [`~serialization.InvalidInput`]: when columns are missing, pictures differ in size or cannot be decoded, or they are too large.
    """
    images, labels = _columns(folder, split, most)
    return _decoded(images.to_pylist(), parquet_files(folder, split)[0]), _numbers(labels)


def read_parquet_labels(folder: str | Path, split: Literal["train", "test"], most: int | None = None) -> torch.Tensor:
    """The labels of [`read_parquet_images`], without decoding a picture."""
    return _numbers(_columns(folder, split, most)[1])


def _columns(folder: str | Path, split: Literal["train", "test"], most: int | None) -> tuple[Any, Any]:
    """The columns of images and of labels."""
    import pyarrow
    import pyarrow.parquet as parquet

    files = parquet_files(folder, split)
    try:
        table = pyarrow.concat_tables([parquet.read_table(path) for path in files])
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidInput(f"{files[0]}: cannot be read ({str(error)[:200]})") from None
    label_column = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    if "image" not in table.column_names or label_column is None:
        raise InvalidInput(
            f"{files[0]}: has the columns {', '.join(table.column_names)}; `image` and `label` are needed"
        )
    table = table.slice(0, most)
    return table.column("image"), table.column(label_column)


def _numbers(labels: Any) -> torch.Tensor:
    return torch.tensor([int(label) for label in labels.to_pylist()])


def _decoded(cells: list[Any], name: Path) -> torch.Tensor:
    from PIL import Image

    pictures: list[np.ndarray] = []
    mode = None
    for row, cell in enumerate(cells):
        try:
            picture = Image.open(io.BytesIO(cell["bytes"]))
            mode = mode or ("L" if picture.mode in ("1", "L") else "RGB")
            if picture.width * picture.height * len(mode) * len(cells) > MOST_BYTES:
                raise InvalidInput(f"{name}: {len(cells)} pictures of {picture.size} do not fit into memory")
            pictures.append(np.asarray(picture.convert(mode)))
        except InvalidInput:
            raise
        except Exception as error:  # Pillow's decoders raise many kinds
            raise InvalidInput(f"{name}: picture {row} cannot be decoded ({type(error).__name__})") from None
        if pictures[-1].shape != pictures[0].shape:
            raise InvalidInput(f"{name}: picture {row} has shape {pictures[-1].shape}, the first {pictures[0].shape}")
    stacked = torch.from_numpy(np.stack(pictures))
    return stacked[:, None].contiguous() if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2).contiguous()


def channel_statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images, of values from 0 to 1; rounded to four digits."""
    means, stds = [], []
    for channel in images.transpose(0, 1):
        values = channel.float() / 255
        means.append(round(float(values.mean()), 4))
        stds.append(max(round(float(values.std()), 4), 1e-4))
    return tuple(means), tuple(stds)


def synthetic_images(count: int, seed: int, classes: int = 10, size: int = 16) -> list[dict[str, Any]]:
    """
    Images `[1, size, size]`: each class is a coarse pattern, the same for every seed, plus noise of the seed's own. Easy on purpose: for runs
    that try out a benchmark in seconds.
    """
    coarse = torch.randn(classes, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    patterns = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    noise = 0.1 * torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed))
    return [{"pixel_values": patterns[row % classes] + noise[row], "labels": row % classes} for row in range(count)]
