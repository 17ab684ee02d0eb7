"""
Depthwise convolutions of small images on a processor, while a net trains.

Where an image is as small as the kernel (the last blocks of EfficientNet-Lite0 at 64 x 64 pixels: kernels of 5 x 5 on 2 x 2 and 4 x 4), the backward pass of
PyTorch's kernels is slow on some processors. There each channel is a small matrix from its pixels to its outputs: the same sums, faster.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional


# Most pixels of an image for which matrices are faster.
MOST_PIXELS = 16


class Products(torch.autograd.Function):
    """Batched matrix products, whose gradients are made contiguous first: else PyTorch copies every matrix alone."""

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(left, right)
        return torch.bmm(left, right)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, right = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        return torch.bmm(gradient, right.transpose(1, 2)), torch.bmm(left.transpose(1, 2), gradient)


class SmallDepthwise(nn.Conv2d):
    """A depthwise convolution of odd kernel, stride 1 and equal size, by matrices where the image is small and the net trains."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows, channels, height, width = input.shape
        if height * width > MOST_PIXELS or not (self.training and torch.is_grad_enabled()):
            return super().forward(input)
        places = entries(self.kernel_size[0], height, width).to(input.device)
        kernels = functional.pad(self.weight.flatten(1), (0, 1))  # a zero where an output does not see a pixel
        matrices = kernels[:, places].reshape(channels, height * width, height * width)
        pixels = input.transpose(0, 1).reshape(channels, rows, height * width).contiguous()
        outputs = Products.apply(pixels, matrices).reshape(channels, rows, height, width).transpose(0, 1)
        outputs = outputs.contiguous(memory_format=torch.channels_last)
        return outputs if self.bias is None else outputs + self.bias[:, None, None]


@lru_cache
def entries(side: int, height: int, width: int) -> torch.Tensor:
    """For each pixel and output which entry of the kernel joins them, `[(height x width)^2]`; `side^2` where none does."""
    found = torch.full((height, width, height, width), side * side)
    for row, column, down, right in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
        high, wide = row - down + side // 2, column - right + side // 2
        if 0 <= high < side and 0 <= wide < side:
            found[row, column, down, right] = high * side + wide
    return found.flatten()


def faster(net: nn.Module) -> nn.Module:
    """`net`, in place, with [`SmallDepthwise`] for its depthwise convolutions that keep the size."""
    for module in net.modules():
        if type(module) is nn.Conv2d and module.groups == module.in_channels == module.out_channels > 1:
            side = module.kernel_size[0]
            kept = (side, side), (side // 2, side // 2), (1, 1), (1, 1), "zeros"
            found = module.kernel_size, module.padding, module.stride, module.dilation, module.padding_mode
            if side % 2 and found == kept:
                module.__class__ = SmallDepthwise
    return net
