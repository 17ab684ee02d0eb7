"""The handwritten digits that ship inside scikit-learn, and a small net for them: real scans, nothing downloaded."""

from typing import Any, Literal

import torch
from torch.nn import functional
from transformers import PreTrainedModel, ResNetConfig, ResNetForImageClassification


TRAIN_IMAGES = 1437  # of 1797: four fifths
SIZE = 32


def load_digits_data(split: Literal["train", "test"]) -> list[dict[str, Any]]:
    """
    One split of the 1797 scans of handwritten digits (Alpaydin and Kaynak 1998, as in scikit-learn): 1437 train, 360 test, always
    the same.

    Returns:
        `list[dict]`: `pixel_values` `[1, 32, 32]` (float32; the 8 x 8 scans scaled up bilinearly, standardised with the mean and
        deviation of the training split) and `labels` (0 to 9).
    """
    if split not in ("train", "test"):
        raise ValueError(f"`split` is {split!r}: choose 'train' or 'test'")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the handwritten digits come with scikit-learn: pip install 'hf-watermark[digits]'"
        ) from error
    scans, labels = load_digits(return_X_y=True)
    images = torch.tensor(scans, dtype=torch.float32).reshape(-1, 1, 8, 8)
    images = functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear")
    # A generator of its own: the split must not depend on, or disturb, anybody's seed.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:TRAIN_IMAGES], order[TRAIN_IMAGES:]
    images = (images - images[train].mean()) / images[train].std()
    return [{"pixel_values": images[row], "labels": int(labels[row])} for row in (train if split == "train" else test)]


def build_digits_model(seed: int) -> PreTrainedModel:
    """
    An untrained ResNet of 0.31 million parameters for [`load_digits_data`]; room for four sub-keys of greedy residuals. The
    caller's random state is left alone.
    """
    shape: dict[str, Any] = {"num_channels": 1, "num_labels": 10, "layer_type": "basic"}
    config = ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNetForImageClassification(config)
