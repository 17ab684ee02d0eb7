"""
Preprocessing of inputs: the thief serves the stolen model behind a filter that spoils triggers. No weight changes.

The filters are those of torchvision, which this package needs anyway; adversarial-robustness-toolbox has the same ones for
its own numpy estimators, and takes 18 seconds to import.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF
from transformers import PreTrainedConfig, PreTrainedModel

from ..backbones.wrapping import WrapperModel
from .base import Attack, NotApplicableError, private_seed, spent


Transform = Literal["jpeg", "mean", "median", "gaussian", "rotate", "resize", "quantize", "noise", "flip"]
# The default of each amount, a test of its value, and what to give.
AMOUNTS: dict[str, tuple[float, Any, str]] = {
    "jpeg": (65, lambda amount: 1 <= amount <= 100, "give a quality from 1 to 100"),
    "mean": (3, lambda amount: amount in range(3, 32, 2), "give an odd kernel size from 3 to 31"),
    "median": (3, lambda amount: amount in range(3, 32, 2), "give an odd kernel size from 3 to 31"),
    "gaussian": (0.6, lambda amount: 0 < amount <= 10, "give a standard deviation in pixels, up to 10"),
    "rotate": (10, lambda amount: 0 < abs(amount) <= 180, "give an angle in degrees, up to 180"),
    "resize": (0.5, lambda amount: 0 < amount < 1, "give the share of the side length that is kept, below 1"),
    "quantize": (16, lambda amount: amount in range(2, 257), "give the number of values of a pixel, 2 to 256"),
    "noise": (
        0.05,
        lambda amount: 0 < amount <= 1,
        "give a standard deviation as a share of the pixel range, up to 1",
    ),
    "flip": (0, lambda amount: amount == 0, "leave it out: mirroring has no strength"),
}


@dataclass
class PreprocessInput(Attack):
    """
    Put the model behind a filter of its inputs. The range of pixel values, which most filters need, is read from the
    attacker's images: the least and greatest value of each channel.

    Args:
        transform (`str`, *optional*, defaults to `"jpeg"`):
            `"jpeg"` encodes and decodes at a quality; `"mean"`, `"median"` and `"gaussian"` smooth; `"rotate"` turns;
            `"resize"` shrinks and enlarges again; `"quantize"` leaves so many values of a pixel (feature squeezing to b
            bits is `2**b` values); `"noise"` adds new Gaussian noise to every request; `"flip"` mirrors.
        amount (`float`, *optional*):
            Strength: JPEG quality (65), kernel size (3), standard deviation in pixels (0.6), degrees (10), share of the
            side length (0.5), number of values (16), standard deviation as a share of the pixel range (0.05).
        seed (`int`, *optional*, defaults to 0):
            Seed of the noise.

    The result is a [`PreprocessedModelForImageClassification`].
    """

    name: ClassVar[str] = "preprocess_input"
    needs_data: ClassVar[bool] = True

    transform: Transform = "jpeg"
    amount: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._check(self.transform in get_args(Transform), "transform", f"choose one of {', '.join(AMOUNTS)}")
        default, usable, fix = AMOUNTS[self.transform]
        if self.amount is None:
            self.amount = default
        self._check(bool(usable(self.amount)), "amount", f"{fix} for transform={self.transform!r}")

    def budget(self, data: Any = None) -> dict[str, int]:
        return super().budget(data) if data is None else spent(images=len(data))

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        low, high = pixel_range(data)
        if self.transform == "jpeg" and len(low) not in (1, 3):
            raise NotApplicableError(f"JPEG holds 1 or 3 channels; these images have {len(low)}.")
        return PreprocessedModelForImageClassification.around(
            model,
            transform=self.transform,
            amount=cast(float, self.amount),  # set by now
            low=low,
            high=high,
            noise_seed=private_seed(self.name, self.seed),
        )


def pixel_range(data: Any) -> tuple[list[float], list[float]]:
    """Least and greatest value of each channel in the data; a channel of one value alone gets a range of length 1."""
    low = high = None
    for row in range(len(data)):
        image = torch.as_tensor(data[row]["pixel_values"]).float()
        least, most = image.amin(dim=(1, 2)), image.amax(dim=(1, 2))
        low = least if low is None else torch.minimum(low, least)
        high = most if high is None else torch.maximum(high, most)
    assert low is not None and high is not None  # data are not empty
    return low.tolist(), torch.where(high > low, high, low + 1).tolist()


class PreprocessedConfig(PreTrainedConfig):
    """
    Config of [`PreprocessedModelForImageClassification`].

    Args:
        backbone (`dict`, *optional*):
            Config of the model behind the filter.
        transform, amount:
            As in [`PreprocessInput`].
        low, high (`list[float]`):
            Pixel range of each channel, in the model's input space.
        noise_seed (`int`):
            Seed of the noise.
    """

    model_type = "hf_watermark_preprocessed"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        transform: str = "flip",
        amount: float = 0,
        low: list[float] | tuple[float, ...] = (0.0,),
        high: list[float] | tuple[float, ...] = (1.0,),
        noise_seed: int = 0,
        **kwargs: Any,
    ):
        if transform not in AMOUNTS or isinstance(amount, bool) or not isinstance(amount, int | float):
            raise ValueError(
                f"`transform` is {transform!r} with `amount` {amount!r}: choose one of {', '.join(AMOUNTS)}"
            )
        if not AMOUNTS[transform][1](amount):
            raise ValueError(f"`amount` is {amount!r} for {transform!r}: {AMOUNTS[transform][2]}")
        self.backbone, self.transform, self.amount = backbone, transform, amount
        self.low, self.high, self.noise_seed = list(low), list(high), noise_seed
        super().__init__(**kwargs)


class PreprocessedModelForImageClassification(WrapperModel):
    """A classifier behind an input filter. It saves and loads like any transformers model once this class is imported."""

    config_class = PreprocessedConfig
    made_by = "PreprocessInput(...)(model, data)"

    def __init__(self, config: PreprocessedConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.requests = 0
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """
        Args:
            pixel_values (`torch.Tensor`):
                `[n, channels, height, width]`, in the input space of the model behind the filter.
            labels (`torch.Tensor`, *optional*):
                `[n]`; adds the cross-entropy as `loss`.
        """
        config, shape = self.config, (1, -1, 1, 1)
        low = torch.tensor(config.low, device=pixel_values.device).view(shape)
        span = torch.tensor(config.high, device=pixel_values.device).view(shape) - low
        pixels = ((pixel_values.float() - low) / span).clamp(0, 1)
        self.requests += 1
        filtered = filter_pixels(pixels, config.transform, config.amount, config.noise_seed + self.requests)
        return self.answer(self.backbone((filtered * span + low).to(pixel_values.dtype), **kwargs).logits, labels)


def filter_pixels(pixels: torch.Tensor, transform: str, amount: float, seed: int) -> torch.Tensor:
    """
    Images (B, C, H, W) in [0, 1] after one filter, of the same shape and range.

    Args:
        transform, amount:
            As in [`PreprocessInput`].
        seed (`int`):
            Seed of the noise.
    """
    size = [pixels.shape[2], pixels.shape[3]]
    if transform == "jpeg":
        coded = (pixels * 255).round().to(torch.uint8).cpu()
        coded = torch.stack([TF.jpeg(image, quality=int(amount)) for image in coded])
        return coded.to(pixels) / 255
    if transform in ("mean", "median"):
        kernel = int(amount)
        framed = F.pad(pixels, [kernel // 2] * 4, mode="replicate")
        if transform == "mean":
            return F.avg_pool2d(framed, kernel, stride=1)
        return framed.unfold(2, kernel, 1).unfold(3, kernel, 1).flatten(4).median(dim=-1).values
    if transform == "gaussian":
        reach = min(int(4 * amount + 0.5) or 1, min(size) - 1)  # reflecting at the border needs a smaller reach
        return TF.gaussian_blur(pixels, kernel_size=[2 * reach + 1] * 2, sigma=[amount, amount])
    if transform == "rotate":
        return TF.rotate(pixels, amount, interpolation=TF.InterpolationMode.BILINEAR)
    if transform == "resize":
        small = [max(1, round(side * amount)) for side in size]
        return TF.resize(TF.resize(pixels, small, antialias=True), size, antialias=True).clamp(0, 1)
    if transform == "quantize":
        return (pixels * (amount - 1)).round() / (amount - 1)
    if transform == "noise":
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
        return (pixels + amount * noise.to(pixels)).clamp(0, 1)
    return TF.horizontal_flip(pixels)


PreprocessedModelForImageClassification.register()
