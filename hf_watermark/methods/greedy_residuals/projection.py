"""
The nearest weights that hold a group's bit, also after noise.

With u_j the canonical weights of a group times the sign s that its bit asks for, the residual is (1/G) times the sum of the k largest magnitudes.
Which ones these are changes with the weights, so a projection that only looks at the margin finds bits that hang on one exchange of places.
Demanded is instead what is expected after noise of standard deviation h:

    F(u) = sum_j u_j P_j,   P_j = Phi((u_j - tau) / h) + Phi((-u_j - tau) / h),

tau midway between the k-th and the next largest magnitude. F is a smooth function, so damped steps along its gradient f' lead from the present
weights u0 to the nearest ones with F(u) >= G mu.
"""

import torch

from .residuals import greedy_mean, kept_count


NOISE = 0.3
ROUNDS = 25
EXCESS = 1.01  # the last, undamped step lands on a curved surface
TRIES = 8
# A residual below this share of the margin asks for so much more.
WEAK, STRONGER = 0.9, 1.3


def project(values: torch.Tensor, margin: float, kept_fraction: float) -> torch.Tensor:
    """
    The groups as they are where they hold their bit, and moved as little as that takes where they do not.

    Args:
        values (`torch.Tensor`):
            Canonical weights times the wanted sign, `[groups, group size]`.
        margin (`float`):
            mu, in units of the row's root mean square.
    """
    target = torch.full((len(values),), margin * values.shape[1], device=values.device)
    result = values.float().clone()
    for _ in range(TRIES):
        short = expected_sum(result, kept_fraction)[0] < target
        # In a small group the expectation may hold where the residual itself does not.
        weak = greedy_mean(result, kept_fraction) < WEAK * margin
        target = torch.where(weak & ~short, STRONGER * target, target)
        if not (short | weak).any():
            break
        result[short | weak] = _moved(values.float()[short | weak], target[short | weak], kept_fraction)
    return result


def _moved(start: torch.Tensor, target: torch.Tensor, kept_fraction: float) -> torch.Tensor:
    moved = start.clone()
    for round in range(ROUNDS):
        total, slope = expected_sum(moved, kept_fraction)
        missing = EXCESS * target - total + (slope * (moved - start)).sum(dim=1)
        step = (missing / slope.square().sum(dim=1).clamp_min(1e-12)).clamp_min(0)
        wanted = start + step[:, None] * slope
        moved = wanted if round == ROUNDS - 1 else (moved + wanted) / 2
    return moved


def expected_sum(values: torch.Tensor, kept_fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """F `[groups]` and its gradient `[groups, group size]` with tau held constant."""
    size = values.shape[1]
    kept = kept_count(size, kept_fraction)
    if kept == size:
        return values.sum(dim=1), torch.ones_like(values)
    ranked = values.abs().sort(dim=1, descending=True).values
    border = (ranked[:, kept - 1 : kept] + ranked[:, kept : kept + 1]) / 2
    above, below = (values - border) / NOISE, (-values - border) / NOISE
    chosen = torch.special.ndtr(above) + torch.special.ndtr(below)
    density = (torch.exp(-above.square() / 2) - torch.exp(-below.square() / 2)) / (2 * torch.pi) ** 0.5
    return (values * chosen).sum(dim=1), chosen + values * density / NOISE


__all__ = ["expected_sum", "project"]
