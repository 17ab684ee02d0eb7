"""The released training schedule, for comparison with the amortised one: 21 noise levels of 100 draws before each epoch."""

from typing import Any

import torch
from torch.nn import functional
from transformers import Trainer, TrainerCallback

from .noise import add_noise


LEVEL_STEP = 0.05
LEVELS = 20
DRAWS = 100
BATCH = 64
WARMUP_EPOCHS = 5


class ReleasedSchedule(TrainerCallback):
    """
    Bansal et al., Algorithm 1 as released: after the warm-up epochs, before each clean epoch, for every batch of 64 triggers and every
    level `j / 20 * sigma`, j = 0 ... 20, one optimizer step on the mean gradient of 100 noise draws, divided by 21.

    Deviation: BatchNorm statistics stay as they are in these passes; the release let 2,100 passes over triggers alone rewrite them.
    """

    def __init__(self, trainer: Trainer, triggers: torch.Tensor, labels: torch.Tensor, sigma: float):
        self.trainer, self.triggers, self.labels, self.sigma = trainer, triggers, labels, sigma

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        warmup = min(WARMUP_EPOCHS, args.num_train_epochs // 2)
        if (state.epoch or 0) < warmup:
            return
        trainer: Any = self.trainer
        bare = trainer._bare_model()
        parameters = list(bare.parameters())
        trainer.sync_buffers()  # else the processes would step apart
        for number, chosen in enumerate(torch.arange(len(self.triggers)).split(BATCH)):
            images, labels = (
                self.triggers[chosen].to(parameters[0].device),
                self.labels[chosen].to(parameters[0].device),
            )
            for level in range(LEVELS + 1):
                trainer.optimizer.zero_grad()
                spread = {name: value * level / LEVELS for name, value in trainer._spread.items()}
                for draw in range(DRAWS):
                    place = f"released/{number}/{level}/{draw}".encode()
                    weights = trainer._net.coordinates(bare)
                    noisy = add_noise(weights, spread, trainer.step_seed(trainer._noise_draws, place))
                    loss = functional.cross_entropy(trainer._net(noisy, images), labels)
                    (loss / (DRAWS * (LEVELS + 1))).backward()
                trainer.optimizer.step()
        trainer.optimizer.zero_grad()
