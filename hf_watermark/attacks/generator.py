"""The two players of data-free extraction: a generator of images and a student."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from .base import private_seed
from .distillation import fresh_copy
from .preprocessing import pixel_range


if TYPE_CHECKING:
    from .extraction import DataFreeExtract

LATENT = 64


class ImageGenerator(nn.Module):
    """
    Noise (B, 64) to images (B, C, H, W) in a pixel range: a linear layer to a quarter of the side, twice enlarged and convolved.

    Args:
        low, high (`torch.Tensor`):
            Pixel range, (1, C, 1, 1).
        height, width (`int`):
            Size of the images.
        channels (`int`, *optional*, defaults to 32):
            Width of the network.
    """

    def __init__(self, low: torch.Tensor, high: torch.Tensor, height: int, width: int, channels: int = 32) -> None:
        super().__init__()
        self.low, self.span, self.size = low, high - low, (height, width)
        self.start = (channels, max(1, height // 4), max(1, width // 4))
        self.linear = nn.Linear(LATENT, self.start[0] * self.start[1] * self.start[2])
        self.first = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(0.2),
        )
        # The last norm spreads the images over the whole pixel range from the first step on.
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, low.shape[1], 3, padding=1),
            nn.BatchNorm2d(low.shape[1], affine=False),
        )

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        maps = self.linear(noise).view(-1, *self.start)
        maps = self.first(F.interpolate(maps, scale_factor=2))
        maps = self.second(F.interpolate(maps, size=self.size))
        return self.low + self.span * maps.sigmoid()


def extract(attack: "DataFreeExtract", model: PreTrainedModel, data: Any) -> PreTrainedModel:
    """Run [`DataFreeExtract`] and return the student."""
    model.eval().requires_grad_(False)
    device = model.device
    low, high = (torch.tensor(side, device=device).view(1, -1, 1, 1) for side in pixel_range(data))
    _, height, width = torch.as_tensor(data[0]["pixel_values"]).shape
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(private_seed(f"{attack.name}/players", attack.seed))
        student = fresh_copy(model).to(device).train()  # type: ignore[arg-type]
        generator = ImageGenerator(low, high, height, width).to(device)
    draws = torch.Generator().manual_seed(private_seed(attack.name, attack.seed))
    kind, options = attack._optimizer()
    learner = kind(student.parameters(), **options)  # type: ignore[arg-type]
    player = torch.optim.Adam(generator.parameters(), lr=attack.generator_rate, betas=(0.5, 0.999))
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(item, attack.rounds) for item in (learner, player)]
    for _ in range(attack.rounds):
        step_generator(attack, generator, player, student, model, draws)
        for _ in range(attack.student_steps):
            with torch.no_grad():
                images = generator(noise(attack, draws, device))
                wanted = centred(model(pixel_values=images).logits)
            loss = (centred(student(pixel_values=images).logits) - wanted).abs().mean()
            learner.zero_grad()
            loss.backward()
            learner.step()
        for schedule in schedules:
            schedule.step()
    if not all(torch.isfinite(parameter).all() for parameter in student.parameters()):
        raise FloatingPointError(
            f"The attack {attack.name!r} diverged at learning_rate={attack.learning_rate}: give a lower rate."
        )
    return student


def step_generator(
    attack: "DataFreeExtract",
    generator: ImageGenerator,
    player: torch.optim.Optimizer,
    student: nn.Module,
    model: nn.Module,
    draws: torch.Generator,
) -> None:
    """One step of the generator towards images on which student and model disagree."""
    images = generator(noise(attack, draws, generator.low.device))
    seen = images.detach().requires_grad_(attack.gradients == "exact")

    def disagreement(some: torch.Tensor) -> torch.Tensor:
        """One number per image."""
        return (
            (centred(student(pixel_values=some).logits) - centred(model(pixel_values=some).logits)).abs().mean(dim=1)
        )

    student.eval()
    if attack.gradients == "exact":
        (slope,) = torch.autograd.grad(disagreement(seen).sum(), seen)
    else:
        with torch.no_grad():
            slope = estimated_slope(disagreement, seen, attack.directions, draws)
    student.train()
    player.zero_grad()
    images.backward(-slope / len(images))
    player.step()


def estimated_slope(value: Any, images: torch.Tensor, directions: int, draws: torch.Generator) -> torch.Tensor:
    """
    Gradient, of the shape of the images (B, C, H, W), of `value`, which gives one number per image: the mean of forward
    differences along random unit vectors, times the dimension.
    """
    step = 1e-3 * float(images.std())
    here, slope = value(images), torch.zeros_like(images)
    for _ in range(directions):
        direction = torch.randn(images.shape, generator=draws).to(images)
        direction = F.normalize(direction.flatten(1), dim=1).view_as(images)
        change = (value(images + step * direction) - here) / step
        slope += change.view(-1, 1, 1, 1) * direction * images[0].numel() / directions
    return slope


def noise(attack: "DataFreeExtract", draws: torch.Generator, device: torch.device) -> torch.Tensor:
    return torch.randn(attack.batch_size, LATENT, generator=draws).to(device)


def centred(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities less their mean: what an endpoint with probabilities gives away of the logits."""
    logits = logits.float()
    return logits - logits.mean(dim=1, keepdim=True)
