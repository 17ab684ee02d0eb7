"""The attacker's images of `hf-watermark attack --data`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Image, disable_progress_bars, load_dataset
from datasets.exceptions import DatasetsError
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms import functional
from transformers import AutoImageProcessor, PreTrainedModel

from ..serialization import InvalidInput
from ..serialization.kinds import refuse_other_kinds


if TYPE_CHECKING:
    from datasets import Dataset as Table

LABEL_COLUMNS = ("label", "labels")
Prepare = Callable[[Any], torch.Tensor]


class TableImages(Dataset):
    """Rows of a table as `{"pixel_values": [C, H, W], "labels": int}`, without labels where there is no column of them."""

    def __init__(self, table: "Table", image_column: str, label_column: str | None, prepare: Prepare):
        self.table, self.image_column, self.label_column, self.prepare = table, image_column, label_column, prepare

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.table[index]
        labels = {} if self.label_column is None else {"labels": row[self.label_column]}
        return {"pixel_values": self.prepare(row[self.image_column])} | labels


def load_images(
    source: str,
    model: PreTrainedModel,
    preprocessor: Path,
    image_size: int | None,
    num_labels: int | None,
    labelled: bool = True,
) -> Any:
    """
    Map-style data set of examples that fit `model`.

    Args:
        source (`str`):
            `"digits"`, a parquet file, a folder with parquet files, or an imagefolder.
        preprocessor (`Path`):
            The model's `preprocessor_config.json`, which may be missing: images are then resized and scaled to [0, 1] only.
        image_size (`int`, *optional*):
            Height and width; by default what the preprocessor or the model's config says, else that of the first image.
        num_labels (`int`, *optional*):
            Refuse labels that are not below it.
        labelled (`bool`, *optional*, defaults to `True`):
            Without it the images need no labels, and are given none.

    Raises:
        [`~serialization.InvalidInput`]: when there are no images, or they do not fit the model.
    """
    channels = _input_channels(model)
    if source == "digits":
        from ..evaluation.digits import load_digits_data

        digits = load_digits_data("train")
        found = digits[0]["pixel_values"].shape[0]
        if found != channels:
            raise InvalidInput(f"digits have {found} channel(s), the model takes {channels}; give other --data")
        _refuse_labels(source, [int(example["labels"]) for example in digits], num_labels)
        return digits
    table = read_table(Path(source))
    image_column, label_column = _columns(source, table, labelled)
    if label_column is not None:
        _refuse_labels(source, table[label_column], num_labels)
    size = image_size or model.config.to_dict().get("image_size")
    if size is None:
        width, height = table[0][image_column].size
        size = (height, width)
    prepare = _plain(size, channels)
    if preprocessor.is_file():
        prepare = _with_processor(preprocessor, image_size, channels)
    return TableImages(table, image_column, label_column, prepare)


def read_table(path: Path) -> "Table":
    """The training split of a parquet file or folder, or of an imagefolder."""
    if not path.exists():
        raise InvalidInput(f"{path}: no such file or folder; give --data digits, a parquet file or a folder of images")
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        if path.is_file():
            return load_dataset("parquet", data_files=str(path), split="train")
        builder = "parquet" if any(path.rglob("*.parquet")) else "imagefolder"
        return load_dataset(builder, data_dir=str(path), split="train")
    except (DatasetsError, ValueError) as error:
        if not any(path.rglob("*.parquet")) and not path.is_file():
            refuse_other_kinds(path, "images: a parquet file, a folder of them, or a folder with one folder per class")
        raise InvalidInput(f"{path}: cannot be read ({error.__cause__ or error})") from None


def _columns(source: str, table: "Table", labelled: bool) -> tuple[str, str | None]:
    images = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    labels = [name for name in LABEL_COLUMNS if name in table.features]
    if not labelled and len(images) == 1:
        return images[0], None
    if len(images) != 1 or len(labels) != 1:
        raise InvalidInput(
            f"{source}: has the columns {', '.join(table.column_names)}; one of images and one called label or labels is needed"
        )
    return images[0], labels[0]


def _refuse_labels(source: str, labels: Any, num_labels: int | None) -> None:
    if num_labels is None:
        return
    unusable = [label for label in labels if not (isinstance(label, int) and 0 <= label < num_labels)]
    if unusable:
        raise InvalidInput(f"{source}: has the label {unusable[0]!r}, the model knows 0 to {num_labels - 1}")


def _input_channels(model: PreTrainedModel) -> int:
    return next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 3)


def _plain(size: int | list[int] | tuple[int, int], channels: int) -> Prepare:
    height, width = (size, size) if isinstance(size, int) else size

    def prepare(image: Any) -> torch.Tensor:
        resized = _in_channels(image, channels).resize((width, height))
        return functional.pil_to_tensor(resized).float() / 255

    return prepare


def _with_processor(preprocessor: Path, image_size: int | None, channels: int) -> Prepare:
    processor = AutoImageProcessor.from_pretrained(preprocessor.parent, local_files_only=True, trust_remote_code=False)
    size = {} if image_size is None else {"do_resize": False, "do_center_crop": False}

    def prepare(image: Any) -> torch.Tensor:
        image = _in_channels(image, channels)
        if image_size is not None:
            image = image.resize((image_size, image_size))
        return processor(image, return_tensors="pt", **size)["pixel_values"][0]

    return prepare


def _in_channels(image: Any, channels: int) -> Any:
    return image.convert("L" if channels == 1 else "RGB")
