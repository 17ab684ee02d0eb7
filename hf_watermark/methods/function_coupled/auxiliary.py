"""A head beside the model's own that says which classes a fused image was made of. It only helps while the rules are learned, and is then dropped."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


RATE = 1e-3


class SourceHead:
    """
    A linear layer on what the model's last linear layer reads. It has an optimizer of its own, steps with the model's, and is in no checkpoint: a run
    that is resumed makes a new one.

    Args:
        model (`nn.Module`):
            The model that trains.
        classes (`int`):
            Of its answers, and of this head.
    """

    def __init__(self, model: nn.Module, classes: int):
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == classes]
        self._layer = layers[-1] if layers else None
        self._classes = classes
        self._head: nn.Linear | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._seen: torch.Tensor | None = None
        self._hook: Any = None

    def watch(self) -> None:
        """Keeps what the last linear layer reads in the next pass, until [`loss`] is asked for."""
        self._seen = None
        if self._layer is not None and self._hook is None:
            self._hook = self._layer.register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        self._seen = given[0]

    def loss(self, sources: torch.Tensor, rows: slice) -> torch.Tensor | None:
        """
        Cross-entropy with both source classes, half each.

        Args:
            sources (`torch.Tensor`): Of each fused image, `[n, 2]`.
            rows (`slice`): Where these stand in the pass that was watched.

        Returns:
            `torch.Tensor`: a scalar; `None` for a model whose head is no linear layer on one vector per image.
        """
        seen, self._seen = self._seen, None
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if seen is None or seen.ndim != 2 or len(seen[rows]) != len(sources):
            return None
        seen = seen[rows]
        if self._head is None:
            # Zero: it needs no random numbers, which belong to the training.
            self._head = nn.Linear(seen.shape[1], self._classes, device=seen.device)
            nn.init.zeros_(self._head.weight)
            nn.init.zeros_(self._head.bias)
            self._optimizer = torch.optim.AdamW(self._head.parameters(), lr=RATE, weight_decay=0.0)
        logs = functional.log_softmax(self._head(seen.float()), dim=1)
        return -logs.gather(1, sources.to(logs.device)).mean()

    def step(self) -> None:
        """Behind every step of the model's optimizer."""
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad()
