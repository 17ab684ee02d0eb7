"""Attacks that train, through `transformers.Trainer`."""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from accelerate.utils import broadcast
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from .base import Attack, ImageDataset, private_seed, spent


# Arguments of a run that writes nothing and shows nothing.
QUIET: dict[str, Any] = {"save_strategy": "no", "report_to": "none", "logging_strategy": "no", "disable_tqdm": True}


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """
    Stack examples to `pixel_values` of shape (B, C, H, W) and `labels` of shape (B,), or (B, H, W) for segmentation; other columns are dropped. Channels lie
    last in memory, which convolutions hand on from layer to layer and which CPUs compute faster.
    """
    images = torch.stack([torch.as_tensor(example["pixel_values"]) for example in examples])
    return {
        "pixel_values": images.contiguous(memory_format=torch.channels_last),
        "labels": torch.stack([torch.as_tensor(example["labels"], dtype=torch.long) for example in examples]),
    }


def draw_batches(
    data: Any, batch_size: int, steps: int, generator: torch.Generator, model: PreTrainedModel
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """
    Yields `steps` batches of images (B, C, H, W) and labels (B,) on the device of `model`: the data in random order, again
    and again. For attacks that optimise something other than the weights, for which `Trainer` is not made; every process
    then does the same work.
    """
    order: list[int] = []
    size = min(batch_size, len(data))
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(data), generator=generator).tolist()
        batch = collate([data[row] for row in order[:size]])
        order = order[size:]
        yield batch["pixel_values"].to(model.device, model.dtype), batch["labels"].to(model.device)


def refit_factor(step: int, total: int) -> float:
    """Share of the initial rate used at a step: halved after each sixth of the run, as in Gan et al., ICCV 2023."""
    return 0.5 ** (6 * step // total)


def answers_of(teacher: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits that nothing is learnt from, on the device of the images."""
    with torch.no_grad():
        return teacher.to(images.device)(pixel_values=images).logits


Loss = Callable[[nn.Module, dict[str, Any]], tuple[torch.Tensor, Any]]
Change = Callable[[nn.Module, dict[str, Any]], torch.Tensor]


class AttackTrainer(Trainer):
    """
    Plain `Trainer` with what attacks add.

    Args:
        refit (`bool`, *optional*, defaults to `False`):
            Decay the learning rate with [`refit_factor`] in place of the scheduler named in the arguments.
        eval_mode (`bool`, *optional*, defaults to `False`):
            Keep BatchNorm statistics and dropout as in evaluation, for attacks that train the last layer only.
        loss (`Callable`, *optional*):
            Loss and outputs from model and batch, in place of the cross-entropy with the labels.
        change (`Callable`, *optional*):
            The images to train on, in place of those of the batch, from the bare model and the batch: gradients of the images must not
            trigger the synchronisation of those of the weights.
    """

    def __init__(
        self,
        *args: Any,
        refit: bool = False,
        eval_mode: bool = False,
        loss: Loss | None = None,
        change: Change | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # Else the loss of most vision models is multiplied by the accumulation steps and the number of processes.
        self.model_accepts_loss_kwargs = False
        self.refit = refit
        self.eval_mode = eval_mode
        self.own_loss, self.change = loss, change

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.refit and self.lr_scheduler is None:
            factor = partial(refit_factor, total=num_training_steps)
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)  # type: ignore[arg-type]
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self.eval_mode:
            model.eval()
        if self.own_loss is not None:
            loss, outputs = self.own_loss(model, inputs)
            return (loss, outputs) if return_outputs else loss
        if self.change is not None:
            inputs = {**inputs, "pixel_values": self.change(self.accelerator.unwrap_model(model), inputs)}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


@dataclass
class TrainingAttack(Attack):
    """
    An attack that trains, through `transformers.Trainer`.

    Args:
        learning_rate (`float`, *optional*, defaults to 0.01):
            Initial learning rate.
        epochs (`float`, *optional*, defaults to 3):
            Passes over the data.
        batch_size (`int`, *optional*, defaults to 128):
            Examples per step and process.
        optimizer (`str`, *optional*, defaults to `"sgd"`):
            `"sgd"` or `"adamw"`. Learning rates of the two do not compare: use the one the model was trained with.
        momentum (`float`, *optional*, defaults to 0.9):
            Momentum of SGD; AdamW ignores it.
        weight_decay (`float`, *optional*, defaults to 5e-4):
            Weight decay, on weights but not on biases and norms.
        schedule (`str`, *optional*, defaults to `"constant"`):
            `"constant"`, `"cosine"`, or `"refit"`: meant for an initial rate above the training rate, halved after each
            sixth of the run (large decaying rate of REFIT, https://huggingface.co/papers/1911.07205).
        seed (`int`, *optional*, defaults to 0):
            Seed of every random choice.
        progress (`bool`, *optional*, defaults to `False`):
            Show the progress bar and the logs of the Trainer.
    """

    needs_data: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = True

    learning_rate: float = 0.01
    epochs: float = 3
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cosine", "refit"] = "constant"
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        self._check(0 < self.learning_rate < float("inf"), "learning_rate", "give a positive number")
        self._check(0 < self.epochs < float("inf"), "epochs", "give a positive number")
        self._check(isinstance(self.batch_size, int) and self.batch_size > 0, "batch_size", "give a positive integer")
        self._check(self.optimizer in ("sgd", "adamw"), "optimizer", "choose 'sgd' or 'adamw'")
        self._check(0 <= self.momentum < 1, "momentum", "give a number from 0 up to, not including, 1")
        self._check(0 <= self.weight_decay < float("inf"), "weight_decay", "give 0 or a positive number")
        self._check(
            self.schedule in ("constant", "cosine", "refit"), "schedule", "choose 'constant', 'cosine' or 'refit'"
        )

    def budget(self, data: ImageDataset | None = None) -> dict[str, int]:
        if data is None:
            return super().budget(data)
        return self.training_budget(len(data))

    def training_budget(self, images: int, epochs: float | None = None) -> dict[str, int]:
        """The budget of [`TrainingAttack.train`] on this many images, for one process."""
        epochs = self.epochs if epochs is None else epochs
        left_out = images > self.batch_size and images % self.batch_size == 1
        steps = math.ceil(epochs * math.ceil((images - left_out) / self.batch_size))
        return spent(images, steps, math.ceil(epochs * (images - left_out)))

    def train(
        self,
        model: PreTrainedModel,
        data: Any,
        callbacks: list[TrainerCallback] | None = None,
        trainer_class: type[AttackTrainer] = AttackTrainer,
        **trainer_options: Any,
    ) -> PreTrainedModel:
        """
        Train `model` in place and return it. Runs on the GPUs and processes that `Trainer` finds, else on the CPU.

        Raises:
            `FloatingPointError`: if the weights are no longer finite: such a result would say nothing about a mark.
        """
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                num_train_epochs=self.epochs,
                per_device_train_batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                weight_decay=self.weight_decay,
                lr_scheduler_type="cosine" if self.schedule == "cosine" else "constant",
                max_grad_norm=0.0,  # clipping would weaken the large rates without a word
                # A single last example stops BatchNorm from training where feature maps are 1 x 1.
                dataloader_drop_last=len(data) > self.batch_size and len(data) % self.batch_size == 1,
                dataloader_pin_memory=torch.cuda.is_available(),
                use_cpu=not torch.cuda.is_available(),
                seed=private_seed(self.name, self.seed),
                data_seed=private_seed(self.name, self.seed),
                save_strategy="no",
                report_to="none",
                logging_strategy="steps" if self.progress else "no",
                disable_tqdm=not self.progress,
                remove_unused_columns=False,  # `collate` chooses the columns, also those made by a lazy transform
            )
            trainer = trainer_class(
                model=model,
                args=arguments,
                train_dataset=data,
                data_collator=collate,
                optimizer_cls_and_kwargs=self._optimizer(),
                callbacks=callbacks,
                refit=self.schedule == "refit",
                **trainer_options,
            )
            if not self.progress:
                trainer.remove_callback(PrinterCallback)
            trainer.train()
            for buffer in model.buffers():  # BatchNorm statistics of the last step differ between processes
                broadcast(buffer)
        if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
            raise FloatingPointError(
                f"The attack {self.name!r} diverged at learning_rate={self.learning_rate}: give a lower rate."
            )
        return model

    def _optimizer(self) -> tuple[type[torch.optim.Optimizer], dict[str, float]]:
        if self.optimizer == "adamw":
            return torch.optim.AdamW, {"lr": self.learning_rate}
        return torch.optim.SGD, {"lr": self.learning_rate, "momentum": self.momentum}
