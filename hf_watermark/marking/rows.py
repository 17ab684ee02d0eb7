"""Changes a row's other weights so that its output stays as it was."""

import torch

from .inputs import Inputs


STEPS = 20
# Of the mean's outer product against the covariance, where nothing but the row itself can cancel a shift.
MEAN_WEIGHT = 30.0


def compensated(
    change: torch.Tensor, held: torch.Tensor, inputs: Inputs, ridge: float, keep_mean: bool = False
) -> torch.Tensor:
    """
    The change of a weight with the smallest `d^T (C + ridge I) d` per row d among those that equal `change` where the mark lies: C is the
    covariance of the inputs, so that is what the row's output varies by. Conjugate gradients over all rows together.

    Args:
        change (`torch.Tensor`):
            `[rows, columns]`, wanted where `held`.
        held (`torch.Tensor`):
            `[rows, columns]`, true where the mark lies.
        ridge (`float`):
            In units of the mean variance of an input.
        keep_mean (`bool`, *optional*, defaults to `False`):
            The row's mean output stays too, because there is no bias behind it that could take the shift.
    """
    groups = len(inputs.samples)
    touched = held.any(dim=1)
    if groups == 1 and not touched.all():
        found = torch.zeros_like(change)
        if touched.any():
            found[touched] = compensated(change[touched], held[touched], inputs, ridge, keep_mean)
        return found
    fixed = held.reshape(groups, -1, change.shape[1])
    samples = inputs.samples
    if keep_mean:
        scale = MEAN_WEIGHT**0.5 / inputs.mean.norm(dim=1, keepdim=True).clamp_min(1e-12) * inputs.mean.shape[1] ** 0.5
        samples = torch.cat([samples, (inputs.mean * scale)[:, None]], dim=1)
    gram = samples.transpose(1, 2) @ samples if samples.shape[1] > samples.shape[2] else None

    def curved(rows: torch.Tensor) -> torch.Tensor:
        product = rows @ gram if gram is not None else (rows @ samples.transpose(1, 2)) @ samples
        return product + ridge * rows

    found = torch.where(fixed, change.reshape(fixed.shape), 0.0)
    residual = torch.where(fixed, 0.0, -curved(found))
    direction, size = residual, residual.square().sum(dim=2, keepdim=True)
    for _ in range(STEPS):
        product = torch.where(fixed, 0.0, curved(direction))
        step = size / (direction * product).sum(dim=2, keepdim=True).clamp_min(1e-30)
        found = found + step * direction
        residual = residual - step * product
        before, size = size, residual.square().sum(dim=2, keepdim=True)
        direction = residual + size / before.clamp_min(1e-30) * direction
    return found.reshape(change.shape)


def output_shift(change: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """How far a change of the weight moves the mean output of each row, `[rows]`."""
    rows = change.reshape(len(inputs.mean), -1, change.shape[1])
    return (rows @ inputs.mean[:, :, None]).flatten()
