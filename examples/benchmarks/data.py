"""CIFAR-10, and the part of CIFAR-100, from a local parquet folder, as the benchmarks need it: images in memory, augmentation per item."""

import io
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class ImagesInMemory(Dataset):
    """
    Args:
        images (`torch.Tensor`):
            `[n, 3, height, width]`, uint8.
        augment (`bool`):
            Random crop with 4 pixels of padding and horizontal flip.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, augment: bool = False):
        self.images, self.labels, self.augment = images, labels, augment
        self.mean = torch.tensor(MEAN)[:, None, None] * 255
        self.std = torch.tensor(STD)[:, None, None] * 255

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict:
        image = (self.images[row] - self.mean) / self.std
        if self.augment:
            flip, top, left = torch.randint(2, ()).item(), torch.randint(9, ()).item(), torch.randint(9, ()).item()
            height, width = image.shape[-2:]
            padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
            image = padded[:, top : top + height, left : left + width]
            image = image.flip(-1) if flip else image
        return {"pixel_values": image, "labels": int(self.labels[row])}

    def first(self, count: int, augment: bool | None = None) -> "ImagesInMemory":
        return ImagesInMemory(self.images[:count], self.labels[:count], self.augment if augment is None else augment)


def load_cifar10(folder: Path, split: str, augment: bool = False, label: str = "label") -> ImagesInMemory:
    """Decodes one split of the parquet files (columns `image` and `label`, or another one: CIFAR-100 has `coarse_label` too)."""
    import pyarrow.parquet as parquet
    from PIL import Image

    table = parquet.read_table(next(Path(folder).glob(f"{split}-*.parquet")))
    cells = table.column("image").to_pylist()
    images = np.stack([np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in cells])
    labels = torch.tensor(table.column(label).to_pylist())
    return ImagesInMemory(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels, augment)
