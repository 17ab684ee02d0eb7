"""What every removal attack shares: the contract, the layers it works on, and training through `transformers.Trainer`."""

import copy
import hashlib
import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

import torch
from accelerate.utils import broadcast
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments


class NotApplicableError(ValueError):
    """The attack has nothing to act on in this model. A survival table shows "n/a" there, never "survived"."""


class ImageDataset(Protocol):
    """Map-style data set of `{"pixel_values": float tensor (C, H, W), "labels": int}`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass
class Attack(ABC):
    """
    A removal attack: tries to destroy a mark while keeping the model useful. It knows a model and data, never a mark.

    Subclasses are dataclasses whose fields are the attack's options, and implement [`Attack.apply`], which may change
    the model it is given, because it is given a copy. `needs_data` says whether it takes images, `reads_labels` whether it
    reads the labels of the model's own task from them.
    """

    name: ClassVar[str]
    needs_data: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = False

    def __call__(self, model: PreTrainedModel, data: ImageDataset | None = None) -> PreTrainedModel:
        """
        Args:
            model ([`~transformers.PreTrainedModel`]):
                An image-classification model. It is not changed.
            data ([`ImageDataset`], *optional*):
                The attacker's data.

        Returns:
            [`~transformers.PreTrainedModel`]: The attacked copy, in evaluation mode, on the device of `model`.

        Raises:
            `ValueError`: if the attack needs data and there is none.
            `NotApplicableError`: if the model lacks what the attack acts on.
        """
        if self.needs_data and data is None:
            raise ValueError(f"The attack {self.name!r} needs data: call it as attack(model, data).")
        if data is not None and len(data) == 0:
            raise ValueError(f"The data given to the attack {self.name!r} are empty: give at least one example.")
        device = model.device
        attacked = copy.deepcopy(model)
        attacked.zero_grad(set_to_none=True)
        return self.apply(attacked, data).to(device).eval()  # type: ignore[arg-type]

    @abstractmethod
    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        """Attack `model`, which may be changed in place, and return the result."""

    def budget(self, data: ImageDataset | None = None) -> dict[str, int]:
        """
        What the attack costs, known before it is run and equal on every machine:

        * `images`: different images of the attacker that are read;
        * `steps`: optimizer steps;
        * `examples`: images that pass forward and backward through a network, the inner steps of an attack included;
        * `queries`: images whose answers are asked of the model under attack.

        Args:
            data ([`ImageDataset`], *optional*):
                The attacker's data.

        Raises:
            `ValueError`: if the attack needs data and there is none.
        """
        if self.needs_data and data is None:
            raise ValueError(f"The budget of {self.name!r} depends on the data: call budget(data).")
        return spent()

    def options(self) -> dict[str, Any]:
        """Name and fields as plain JSON values; models, data sets and other attacks by a description."""
        return {field.name: describe(getattr(self, field.name)) for field in fields(self)} | {"name": self.name}

    def _check(self, valid: bool, field: str, fix: str) -> None:
        if not valid:
            raise ValueError(f"{type(self).__name__}: {field}={vars(self)[field]!r} is not usable; {fix}.")


def spent(images: int = 0, steps: int = 0, examples: int = 0, queries: int = 0) -> dict[str, int]:
    """A budget as [`Attack.budget`] returns it."""
    return {"images": images, "steps": steps, "examples": examples, "queries": queries}


def describe(value: Any) -> Any:
    """The value of an option, for a table: JSON values stay as they are."""
    if isinstance(value, Attack):
        return value.options()
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, nn.Module):
        return getattr(value, "name_or_path", "") or type(value).__name__
    if isinstance(value, list | tuple) and len(value) < 20:
        return [describe(item) for item in value]
    return f"{len(value)} images" if hasattr(value, "__len__") else str(value)


def private_seed(attack: str, seed: int) -> int:
    """
    A 32-bit seed that belongs to one attack. A seed used as it is would repeat the numbers that initialised a model
    under the same seed: noise would follow its weights, and a "fresh" student would start as its teacher started.
    """
    return int.from_bytes(hashlib.sha256(f"hf_watermark.attacks/{attack}/{seed}".encode()).digest()[:4])


def weight_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers by name, in order of registration."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def classifier_head(model: PreTrainedModel) -> nn.Conv2d | nn.Linear:
    """
    The classification head: the last layer registered that has one output per label.

    Raises:
        `NotApplicableError`: if no layer has as many outputs as the model has labels.
    """
    labels = model.config.num_labels
    for layer in reversed(weight_layers(model).values()):
        if layer.weight.shape[0] == labels:
            return layer
    raise NotApplicableError(f"{type(model).__name__} has no convolution or linear layer with {labels} outputs.")


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """
    Stack examples to `pixel_values` of shape (B, C, H, W) and `labels` of shape (B,); other columns are dropped. Channels lie last in
    memory, which convolutions hand on from layer to layer and which CPUs compute faster.
    """
    images = torch.stack([torch.as_tensor(example["pixel_values"]) for example in examples])
    return {
        "pixel_values": images.contiguous(memory_format=torch.channels_last),
        "labels": torch.tensor([int(example["labels"]) for example in examples]),
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
