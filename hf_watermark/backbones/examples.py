"""Black images for a model that does not say which it takes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .folding import evaluation_mode


# Sides of images that networks are made for, the usual ones first.
SIDES = (224, 32, 256, 299, 384, 128, 96, 28)
MOST_SIDE = 2048


def likely_images(model: nn.Module, default: int = 64) -> Iterator[torch.Tensor]:
    """
    Images `[1, channels, height, width]` that the model may take, of the type and on the device of its weights, the likeliest first: of the size that it
    says itself (`default` where it says none), of what timm says, of usual sizes.
    """
    weights = list(model.parameters())
    like = next((item for item in weights if item.is_floating_point()), weights[0].device if weights else "cpu")
    first = _said(model, default).to(like)
    yield first
    known = [getattr(module, "pretrained_cfg", None) or {} for module in model.modules()]
    said: list[Any] = [cfg["input_size"] for cfg in known if cfg.get("input_size")][:1]
    sides = (*(size[-1] for size in said), *SIDES)
    # A first convolution may read what was made of the image.
    for channels in dict.fromkeys((first.shape[1], *(size[0] for size in said), 3)):
        for side in dict.fromkeys(min(side, MOST_SIDE) for side in sides):
            yield first.new_zeros(1, channels, side, side)


def images_taken(model: nn.Module, default: int = 64) -> torch.Tensor:
    """The first of [`likely_images`] that the model answers; the likeliest where it answers none."""
    for images in likely_images(model, default):
        try:
            with torch.no_grad(), evaluation_mode(model):
                model(images)
        except Exception:  # code of any library
            continue
        return images
    return next(likely_images(model, default))


def _said(model: nn.Module, default: int) -> torch.Tensor:
    config: Any = getattr(model, "config", None)
    fields = config.to_dict() if config is not None else {}
    size = fields.get("image_size") or (fields.get("pretrained_cfg") or {}).get("input_size")
    # timm's transformers know their size; convolutional nets take any.
    known: list[Any] = [module.img_size for module in model.modules() if getattr(module, "img_size", None)]
    size = size or (known[0] if known else default)
    size = [min(side, MOST_SIDE) for side in ([size, size] if isinstance(size, int) else list(size)[-2:])]
    channels = next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 3)
    return torch.zeros(1, channels, *size)


__all__ = ["images_taken", "likely_images"]
